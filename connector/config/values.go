package config

import (
	"errors"
	"strings"

	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/connector"
	"github.com/warrenmesh/warren/connector/guard"
	"github.com/warrenmesh/warren/connector/origin"
)

// The values of the file are those of the rooms; only their errors are made
// shorter, because a problem names the value already.
type (
	key     [32]byte
	edgeURL struct{ connector.EdgeURL }
	service struct{ origin.Service }
	target  struct{ origin.Target }
	rule    struct{ guard.Rule }

	inlineToken struct{}
)

func (*inlineToken) UnmarshalText([]byte) error {
	return strict.Reject("a secret has no place in a config", "write the token into a file with mode 0600 and name that in token_file")
}

func (k *key) UnmarshalText(text []byte) error {
	parsed, err := strict.ParseKey(string(text))
	*k = parsed
	return err
}

func (u *edgeURL) UnmarshalText(text []byte) error { return shorter(u.EdgeURL.UnmarshalText(text)) }
func (s *service) UnmarshalText(text []byte) error { return shorter(s.Service.UnmarshalText(text)) }
func (t *target) UnmarshalText(text []byte) error  { return shorter(t.Target.UnmarshalText(text)) }
func (r *rule) UnmarshalText(text []byte) error    { return shorter(r.Rule.UnmarshalText(text)) }

func shorter(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(trim(err.Error()))
}

// trim cuts `parsing rule "…": ` off an error's text.
func trim(text string) string {
	if !strings.HasPrefix(text, "parsing ") {
		return text
	}
	if _, rest, ok := strings.Cut(text, `": `); ok {
		return rest
	}
	return text
}

func rules(in []rule) []guard.Rule {
	var out []guard.Rule
	for _, r := range in {
		if r != (rule{}) { // one that could not be read
			out = append(out, r.Rule)
		}
	}
	return out
}

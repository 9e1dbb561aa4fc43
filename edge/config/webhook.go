package config

import (
	"fmt"
	"slices"
	"time"

	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/edge/events"
)

// Events is the [events] table: what this edge remembers of changes of state.
type Events struct {
	// Ring is how many events are kept in memory for `GET /events`. Default:
	// 4096; 16 to 1000000.
	Ring int `toml:"ring" default:"4096" range:"16..1000000"`
}

// webhookTable is a [[webhook]]: where events are posted.
type webhookTable struct {
	// Name is the label in metrics and in `warren status`.
	Name string `toml:"name" required:"true" hint:"give the webhook a name"`
	// URL that each event is posted to, as JSON. Over http:// anybody on the
	// way can read it, which the edge warns of.
	URL string `toml:"url" required:"true" hidden:"true" hint:"write it like \"https://hooks.example.com/warren\""`
	// SecretFile holds the key that signs each body with HMAC-SHA256, in the
	// header Warren-Signature. A relative path is looked up in
	// $CREDENTIALS_DIRECTORY where that is set, else beside the file that names
	// it. Default: no signature.
	SecretFile string `toml:"secret_file"`
	// TokenFile holds a token for the header Authorization: Bearer. It is looked
	// up as SecretFile is. Default: no such header.
	TokenFile string `toml:"token_file"`
	// Kinds are the kinds of event that are posted: pool, endpoint, connector.
	// Default: every kind.
	Kinds []string `toml:"kinds" oneof:"pool endpoint connector"`
	// Timeout is how long one attempt may take. Default: 10s; 100ms to 1m.
	Timeout time.Duration `toml:"timeout" default:"10s" range:"100ms..1m"`
	// MaxAge is when an event is given up that could not be posted. Default:
	// 1h; 1s to 24h.
	MaxAge time.Duration `toml:"max_age" default:"1h" range:"1s..24h"`
	// Queue is how many events may wait; of more, the oldest are dropped.
	// Default: 1024; 1 to 65536.
	Queue int `toml:"queue" default:"1024" range:"1..65536"`
}

// Validate implements strict.Validator.
func (w *webhookTable) Validate(doc *strict.Doc, path string) {
	checkName(doc, path+".name", w.Name)
	for i, kind := range w.Kinds {
		if at := fmt.Sprintf("%s.kinds[%d]", path, i); kind != "" && slices.Index(w.Kinds, kind) != i && !doc.Bad(at) {
			doc.Add(at, "the kind is there twice", "remove one of the two")
		}
	}
}

func (l *loader) buildEvents() {
	l.cfg.Events = l.file.Events
	for i, t := range l.file.Webhook {
		at := fmt.Sprintf("webhook[%d]", i)
		spec := events.Spec{
			Name: t.Name, URL: t.URL, Kinds: t.Kinds, Timeout: t.Timeout, MaxAge: t.MaxAge, Queue: t.Queue,
			SecretFile: l.resolveSecret(at+".secret_file", t.SecretFile),
			TokenFile:  l.resolveSecret(at+".token_file", t.TokenFile),
		}
		spec.Validate(func(key, _, hint string) {
			if at := at + "." + key; !l.doc.Bad(at) {
				l.doc.AddHidden(at, hint, "")
			}
		})
		l.cfg.Webhooks = append(l.cfg.Webhooks, spec)
	}
}

// Warnings are what the config says that is allowed but unwise, a sentence
// each.
func (c *Config) Warnings() []string {
	var out []string
	for _, w := range c.Webhooks {
		out = append(out, w.Warnings()...)
	}
	return out
}

package config

import (
	"strings"
	"testing"

	"github.com/warrenmesh/warren/configs"
	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/configs/strict/mutate"
)

// TestSample loads the sample as it is, and with the lines that are commented
// out turned on.
func TestSample(t *testing.T) {
	if _, err := parseText(home, configs.Connector); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(configs.Connector, "\n")
	for i, line := range lines {
		rest, ok := strings.CutPrefix(line, "# ")
		key, _, assigned := strings.Cut(rest, " = ")
		if ok && (assigned && !strings.Contains(key, " ") || strings.HasPrefix(rest, "[[")) {
			lines[i] = rest
		}
	}
	cfg, err := parseText(home, strings.Join(lines, "\n"))
	if err != nil {
		t.Fatalf("with the commented lines turned on:\n%v", err)
	}
	if len(cfg.Spec.Origin.Aliases) != 1 || len(cfg.Spec.Guard.Allow) != 3 || cfg.Spec.StateDir != "/var/lib/warren-connector" {
		t.Errorf("the commented lines are not there: %+v", cfg.Spec)
	}
}

// TestMutants wants no panic, and a report that leads to the mutation wherever
// a mutant is refused.
func TestMutants(t *testing.T) {
	for _, text := range []string{full, configs.Connector} {
		mutants, err := mutate.All(text)
		if err != nil {
			t.Fatal(err)
		}
		refused := 0
		for _, m := range mutants {
			_, err := parseText(home, m.Text)
			if err == nil {
				continue
			}
			refused++
			if _, ok := err.(strict.Problems); !ok {
				t.Fatalf("%s: no list of problems: %v", m, err)
			}
			if !m.Named(err) {
				t.Errorf("%s: not named by\n%v", m, err)
			}
		}
		if refused < len(mutants)/2 {
			t.Errorf("%d of %d mutants were refused", refused, len(mutants))
		}
	}
}

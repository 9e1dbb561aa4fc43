package config

import (
	"testing"

	"github.com/warrenmesh/warren/configs"
	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/configs/strict/mutate"
)

// TestMutants wants no panic of 10,000 mutants of big files and of the sample, and a report that leads to the mutation wherever one is refused.
// Under the race detector it tries each kind of mutation until one is refused,
// and then a sample.
func TestMutants(t *testing.T) {
	mutants, err := mutate.All(mutate.Edge(20000, "/var/lib/warren"))
	if err != nil {
		t.Fatal(err)
	}
	const enough = 10_000
	if len(mutants) < enough {
		t.Errorf("%d mutants, want %d at least", len(mutants), enough)
	}
	for _, text := range []string{mutate.Director(20000, "/var/lib/warren"), configs.Edge} {
		more, err := mutate.All(text)
		if err != nil {
			t.Fatal(err)
		}
		mutants = append(mutants, more...)
	}
	seen, refused := make(map[mutate.Op]int), make(map[mutate.Op]int)
	for _, m := range mutants {
		seen[m.Op]++
		if refused[m.Op] > 0 && (seen[m.Op]-1)%mutantStep != 0 {
			continue
		}
		_, err := parseText(t, m.Text)
		if err == nil {
			continue
		}
		refused[m.Op]++
		if _, ok := err.(strict.Problems); !ok {
			t.Fatalf("%s: no list of problems: %v", m, err)
		}
		if !m.Named(err) {
			t.Errorf("%s: not named by\n%v", m, err)
		}
	}
	for _, op := range []mutate.Op{mutate.Drop, mutate.Behead, mutate.Duplicate, mutate.Retype, mutate.Dangle, mutate.Rename} {
		if refused[op] == 0 {
			t.Errorf("no %s was refused", op)
		}
	}
	t.Logf("%d mutants, refused: %v", len(mutants), refused)
}

package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/edge/events"
	"github.com/warrenmesh/warren/edge/monitor"
	"github.com/warrenmesh/warren/host"
)

// ReadMonitors returns Monitors with each ca_file read, as the monitor wants
// them: at the start, and at every reload. The error is a strict.Problems.
func (c *Config) ReadMonitors() ([]monitor.Spec, error) {
	doc := c.doc.Fork()
	specs := c.readMonitors(doc)
	return specs, doc.Err()
}

func (c *Config) readMonitors(doc *strict.Doc) []monitor.Spec {
	specs := slices.Clone(c.Monitors)
	for i := range specs {
		loaded, err := specs[i].Check.Load()
		if err != nil {
			doc.AddHidden(fmt.Sprintf("monitor[%d].ca_file", i), err.Error(), "")
			continue
		}
		specs[i].Check = loaded
		path := fmt.Sprintf("monitor[%d]", i)
		loaded.Validate(func(key, _, hint string) {
			if key == "ca_file" { // the rest is known already
				doc.AddHidden(path+"."+key, hint, "")
			}
		})
	}
	return specs
}

// maxSecret is the most bytes of a webhook's key or token.
const maxSecret = 64 << 10

// ReadSecret reads a file of a webhook, and refuses one that others may read.
func ReadSecret(path string) ([]byte, error) { return host.ReadPrivate(path, maxSecret) }

// webhooks wants the files of each to be there, and closed to others.
func (h *hostCheck) webhooks() {
	log := events.New(events.Deps{Secret: ReadSecret}) // starts nothing
	for i, w := range h.cfg.Webhooks {
		for _, f := range []struct {
			key  string
			spec events.Spec
		}{
			{"secret_file", events.Spec{Name: w.Name, URL: w.URL, SecretFile: w.SecretFile}},
			{"token_file", events.Spec{Name: w.Name, URL: w.URL, TokenFile: w.TokenFile}},
		} {
			change, err := log.Prepare([]events.Spec{f.spec})
			if err != nil {
				_, why, _ := strings.Cut(err.Error(), f.key+": ")
				h.doc.AddHidden(fmt.Sprintf("webhook[%d].%s", i, f.key), why, "")
				continue
			}
			change.Rollback()
		}
	}
}

package config

import (
	"time"

	"github.com/warrenmesh/warren/configs/strict"
)

// Enrollment is the [enrollment] table: what holds for connectors that came by
// a token.
type Enrollment struct {
	// KeyMaxAge is the age at which a connector is asked to change its key;
	// its flows go on. "0s" leaves it to `warren connector rotate`. Default:
	// 0s; else 1h to 87600h.
	KeyMaxAge time.Duration `toml:"key_max_age" default:"0s" range:"0s..87600h"`
}

// Validate implements strict.Validator.
func (e *Enrollment) Validate(doc *strict.Doc, path string) {
	if e.KeyMaxAge > 0 && e.KeyMaxAge < time.Hour && !doc.Bad(path+".key_max_age") {
		doc.Add(path+".key_max_age", "out of range", "use 1h to 87600h, or 0s for never")
	}
}

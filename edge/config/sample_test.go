package config

import (
	"reflect"
	"strings"
	"testing"

	"github.com/warrenmesh/warren/configs"
	"github.com/warrenmesh/warren/configs/strict"
)

// TestSample loads the sample as it is, and with the lines that are commented
// out turned on.
func TestSample(t *testing.T) {
	cfg, err := parseText(t, configs.Edge)
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range cfg.IngressSpecs() {
		if !spec.Addr.Addr().IsLoopback() || spec.Addr.Port() < 1024 {
			t.Errorf("the sample needs rights: it listens on %s", spec.Addr)
		}
	}
	for _, at := range cfg.DNS.Server.Listen {
		if !at.Addr().IsLoopback() || at.Port() < 1024 {
			t.Errorf("the sample needs rights: DNS listens on %s", at)
		}
	}
	if got := strings.Join(cfg.Apps[0].Hostnames, " "); got != "db.apps.example.com" {
		t.Errorf("hostnames of %s: %q", cfg.Apps[0].Name, got)
	}

	full := uncomment(configs.Edge)
	cfg, err = parseText(t, full)
	if err != nil {
		t.Fatalf("with the commented lines turned on:\n%v", err)
	}
	if len(cfg.Connectors) != 1 || len(cfg.Apps) != 3 || cfg.Apps[0].Allow == nil || cfg.Addresses[0].Bind[0].String() != "10.1.2.3" {
		t.Errorf("the commented lines are not there: %+v", cfg)
	}
	mentioned(t, reflect.TypeFor[file](), "", full)
}

// uncomment turns the lines of a sample on that show a key or a table.
func uncomment(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		rest, ok := strings.CutPrefix(line, "# ")
		key, _, assigned := strings.Cut(rest, " = ")
		if ok && (assigned && !strings.Contains(key, " ") || strings.HasPrefix(rest, "[")) {
			lines[i] = rest
		}
	}
	return strings.Join(lines, "\n")
}

// mentioned wants every key that is served in the sample: it is the reference
// that people read first.
func mentioned(t *testing.T, table reflect.Type, path, text string) {
	t.Helper()
	for i := range table.NumField() {
		field := table.Field(i)
		key := field.Tag.Get("toml")
		inner := field.Type
		if inner.Kind() == reflect.Slice || inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		switch {
		case key == "" || inner == reflect.TypeFor[strict.Unsupported]():
		case inner.Kind() == reflect.Struct && strings.HasSuffix(inner.Name(), "Table"), inner.PkgPath() == table.PkgPath() && strings.Contains("Edge WireGuard Address Admin Log Enrollment Events Network Connector", inner.Name()):
			if !strings.Contains(text, "["+path+key+"]") {
				t.Errorf("the sample does not show [%s%s]", path, key)
			}
			mentioned(t, inner, path+key+".", text)
		case !strings.Contains(text, "\n"+key+" = "):
			t.Errorf("the sample does not show %s%s", path, key)
		}
	}
}

// TestSampleUnsupported wants each key of a later version refused, with or
// without a hint, and never as an unknown key.
func TestSampleUnsupported(t *testing.T) {
	for _, tt := range []struct{ table, key string }{
		{"[wireguard]", "uapi"}, {"[admin]", "listen"}, {"[[app]]", "certificate"},
		{"[[app]]", "proxy_protocol"}, {"", "policy"},
	} {
		_, err := parseText(t, tt.table+"\n"+tt.key+" = 'x'\n")
		if err == nil || !strings.Contains(err.Error(), tt.key+": not supported by this version") {
			t.Errorf("%s %s: %v", tt.table, tt.key, err)
		}
	}
}

package config

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/warrenmesh/warren/configs/strict"
)

// Address is an [[address]]: a named public address. Apps listen on it, DNS
// hands it out.
type Address struct {
	// Name is what apps refer to with "on".
	Name string `toml:"name" required:"true" hint:"give the address a name for apps to refer to"`
	// Advertise are the addresses that clients dial and DNS answers with.
	Advertise []netip.Addr `toml:"advertise" required:"true" hint:"list the public addresses, as in [\"203.0.113.10\"]"`
	// Bind are the machine's own addresses behind them, paired by place, where
	// they differ (cloud NAT). "0.0.0.0" and "::" are every address of their
	// family. Default: advertise.
	Bind []netip.Addr `toml:"bind"`
}

// Validate implements strict.Validator.
func (a *Address) Validate(doc *strict.Doc, path string) {
	checkName(doc, path+".name", a.Name)
	for i, addr := range a.Advertise {
		at := fmt.Sprintf("%s.advertise[%d]", path, i)
		switch {
		case !addr.IsValid():
		case addr.IsUnspecified() || addr.IsMulticast():
			doc.Add(at, "not an address that clients can dial", "write the public address")
		case slices.Index(a.Advertise, addr) != i:
			doc.Add(at, "the address is there twice", "remove one of the two")
		}
	}
	if len(a.Bind) == 0 {
		return
	}
	if len(a.Bind) != len(a.Advertise) && !doc.Bad(path+".advertise") && !doc.Bad(path+".bind") {
		doc.Add(path+".bind", fmt.Sprintf("%d addresses for the %d of advertise", len(a.Bind), len(a.Advertise)),
			"write one for each, in the same order")
		return
	}
	for i, addr := range a.Bind {
		at := fmt.Sprintf("%s.bind[%d]", path, i)
		switch {
		case !addr.IsValid() || i >= len(a.Advertise) || !a.Advertise[i].IsValid():
		case addr.IsMulticast():
			doc.Add(at, "not an address of this machine", "write the machine's own address")
		case addr.Is4() != a.Advertise[i].Is4():
			doc.Add(at, fmt.Sprintf("paired with %s, of the other family", a.Advertise[i]), "write both lists in the same order")
		case slices.Index(a.Bind, addr) != i:
			doc.Add(at, "the address is there twice", "remove one of the two")
		}
	}
}

func (l *loader) buildAddresses() {
	l.cfg.Addresses = slices.Clone(l.file.Address)
	for i := range l.cfg.Addresses {
		if a := &l.cfg.Addresses[i]; len(a.Bind) == 0 {
			a.Bind = a.Advertise
		}
	}
}

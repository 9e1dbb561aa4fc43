// Package configs holds the sample configuration files: annotated, complete,
// and each loaded by a test of the room that reads it, so that they are never
// behind the code. `warren edge init` writes Edge as it is; both may be copied
// and edited.
//
// The samples must start as they are on any machine, without root and without
// a line changed, Connector's key and edge excepted.
package configs

import _ "embed"

// Edge is a sample edge.toml. It listens on loopback and on unprivileged ports
// only.
//
//go:embed edge.toml
var Edge string

// Connector is a sample connector.toml. It loads as it is; to reach an edge it
// needs that edge's public key and address.
//
//go:embed connector.toml
var Connector string

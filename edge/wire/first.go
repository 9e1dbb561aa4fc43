package wire

import (
	"encoding/json"
	"net/netip"
)

// The lists of the messages of PathWork. Of a list in JSON that is longer than
// its bound they take the first elements, before any is made: else two bytes of
// a message would become a hundred of memory.
type (
	checkResults []CheckResult
	foundNames   []Found
	workSpecs    []WorkSpec
	checks       []Check
	names        []Name
	addrs        []netip.Addr
)

// UnmarshalJSON implements json.Unmarshaler.
func (l *checkResults) UnmarshalJSON(data []byte) error {
	return decodeFirst(data, MaxResults, (*[]CheckResult)(l))
}

// UnmarshalJSON implements json.Unmarshaler.
func (l *foundNames) UnmarshalJSON(data []byte) error {
	return decodeFirst(data, MaxFound, (*[]Found)(l))
}

// UnmarshalJSON implements json.Unmarshaler.
func (l *workSpecs) UnmarshalJSON(data []byte) error {
	return decodeFirst(data, MaxSpecs, (*[]WorkSpec)(l))
}

// UnmarshalJSON implements json.Unmarshaler.
func (l *checks) UnmarshalJSON(data []byte) error {
	return decodeFirst(data, MaxChecks, (*[]Check)(l))
}

// UnmarshalJSON implements json.Unmarshaler.
func (l *names) UnmarshalJSON(data []byte) error {
	return decodeFirst(data, MaxNames, (*[]Name)(l))
}

// UnmarshalJSON implements json.Unmarshaler.
func (l *addrs) UnmarshalJSON(data []byte) error {
	return decodeFirst(data, MaxAddrs, (*[]netip.Addr)(l))
}

func decodeFirst[T any](data []byte, most int, into *[]T) error {
	return json.Unmarshal(first(data, most), into)
}

// first returns data, which is valid JSON, but with no more than most elements
// where it is an array.
func first(data []byte, most int) []byte {
	if len(data) == 0 || data[0] != '[' {
		return data
	}
	depth, n, quoted := 0, 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '[', c == '{':
			depth++
		case c == ']', c == '}':
			depth--
		case c == ',' && depth == 1:
			if n++; n == most {
				return append(data[:i:i], ']')
			}
		}
	}
	return data
}

package netx

// BatchSize is how many datagrams a Batch holds at most. 64 of 1,200 bytes are
// more than a tunnel's reader has for one flow at a time, and one message of
// segmentation offload takes as many on every kernel that has it.
const BatchSize = 64

// BatchReader is a datagram conn that hands over many datagrams a call, and
// lends its own memory for that instead of copying.
//
// ReadBatch waits like Read until there is a datagram and adds those that are
// there, as many as the Batch has room for, to b. It fails as Read does, with
// nothing added. The caller releases b.
type BatchReader interface {
	ReadBatch(b *Batch) error
}

// BatchWriter is a datagram conn that takes many datagrams a call, each of
// which is sent as one. WriteBatch returns how many it took, in order, and with
// an error why it did not take the next one; the others may be tried again. It
// keeps none of the slices.
type BatchWriter interface {
	WriteBatch(datagrams [][]byte) (int, error)
}

// Lender is who owns the memory of datagrams that were lent: DecRef gives one
// loan back.
type Lender interface {
	DecRef()
}

// Batch is datagrams on loan from the conn that they came from. The zero value
// is empty; one goroutine at a time may use a Batch.
type Batch struct {
	n         int
	datagrams [BatchSize][]byte
	lenders   [BatchSize]Lender
}

// Add appends a datagram, whose memory from lends until Release; a nil from
// lends nothing. There must be room.
func (b *Batch) Add(datagram []byte, from Lender) {
	b.datagrams[b.n], b.lenders[b.n] = datagram, from
	b.n++
}

// Room is how many datagrams may be added.
func (b *Batch) Room() int { return BatchSize - b.n }

// Datagrams are those that were added, in order. They must not be changed, nor
// used after Release.
func (b *Batch) Datagrams() [][]byte { return b.datagrams[:b.n] }

// Release gives every loan back and empties the Batch.
func (b *Batch) Release() {
	for i := range b.n {
		if from := b.lenders[i]; from != nil {
			from.DecRef()
		}
		b.datagrams[i], b.lenders[i] = nil, nil
	}
	b.n = 0
}

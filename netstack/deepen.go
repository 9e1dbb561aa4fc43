package netstack

// stackRoom is what the way of a packet through gVisor takes of a goroutine's
// stack. A new goroutine begins with 2 KiB; without room it grows three times
// on the way down, and each time all the frames above are copied and their
// pointers mended. Measured by BenchmarkConnect, in processor time of both
// ends: 136 us without, 140 with 6 KiB, 112 with 10.
const stackRoom = 10 << 10

// deepen makes the goroutine's stack large enough at once, while little is on
// it. Where it is already, that costs a comparison; a collection of garbage
// halves the stack again if the goroutine rests.
//
//go:noinline
func deepen() {
	if touchStack {
		var room [stackRoom]byte
		touch(&room)
	}
}

// touchStack is false, which the compiler does not know: it is the size of
// deepen's frame that counts.
var touchStack bool

//go:noinline
func touch(room *[stackRoom]byte) { room[len(room)-1]++ }

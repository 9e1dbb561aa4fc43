package relay

// stackRoom is what a direction takes of its goroutine's stack on the way of a
// packet through a stack in userspace. A new goroutine begins with 2 KiB, which
// would grow twice or three times, and be copied each time.
const stackRoom = 10 << 10

// deepen makes the goroutine's stack large enough at once, while there is next
// to nothing on it.
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

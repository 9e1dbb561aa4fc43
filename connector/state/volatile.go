package state

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Volatile tells whether what is in the directory will not outlive the machine
// or the container, and why, in a sentence for the log that says what to do.
func (d *Dir) Volatile() (why string, yes bool) {
	var fs unix.Statfs_t
	if err := unix.Statfs(d.path, &fs); err != nil {
		return "", false
	}
	return volatile(d.path, int64(fs.Type)&0xffffffff) // 32 bits, whose sign differs between machines
}

// volatile judges the type of a file system (statfs(2)).
func volatile(path string, kind int64) (why string, yes bool) {
	var on, after string
	switch kind {
	case unix.TMPFS_MAGIC:
		on, after = "on tmpfs", "a reboot"
	case unix.RAMFS_MAGIC:
		on, after = "on ramfs", "a reboot"
	case unix.OVERLAYFS_SUPER_MAGIC:
		on, after = "in a container's own layer (overlayfs)", "the container is made anew"
	default:
		return "", false
	}
	return fmt.Sprintf("the state directory %s is %s: this connector has to enrol again after %s: mount a volume there, or use a token made with --ephemeral", path, on, after), true
}

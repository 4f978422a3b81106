package lab

import "golang.org/x/sys/unix"

// CheckPrograms is the part of the requirements that can be missing in a test.
var CheckPrograms = checkPrograms

// BindMount and Unmount make a directory that stands for another release.
func BindMount(from, to string) error { return mount(from, to, "", unix.MS_BIND, "") }

// Unmount undoes BindMount.
func Unmount(dir string) error { return unix.Unmount(dir, unix.MNT_DETACH) }

// Starve leaves a capture hardly any buffer and no reader while f runs.
func (c *Capture) Starve(f func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := controlErr(c.raw, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1)
	})
	f()
	return err
}

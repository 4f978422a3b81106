package cgroups

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// An occurrence is that something was made or removed in a watched directory.
type occurrence struct {
	watch int32
	name  string
}

// A batch is what was read at once.
type batch struct {
	of *watcher
	// all are the occurrences, each once.
	all []occurrence
	// lost says that the kernel dropped some.
	lost bool
	// gone says that the file system was unmounted.
	gone bool
	err  error
}

// A watcher is an inotify instance whose events go to a channel. It reads on only when they were taken.
type watcher struct {
	file *os.File
	fd   int
	done chan struct{}
	read sync.WaitGroup
}

// Fields of struct inotify_event (linux/inotify.h).
const (
	eventMask   = 4
	eventLength = 12
	eventName   = unix.SizeofInotifyEvent
)

// readAtOnce is room for a thousand events.
const readAtOnce = 32 << 10

func newWatcher(batches chan<- batch) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watching cgroups: %w%s", err, fixLimit(err))
	}
	w := &watcher{file: os.NewFile(uintptr(fd), "inotify"), fd: fd, done: make(chan struct{})}
	w.read.Go(func() {
		buffer := make([]byte, readAtOnce)
		for {
			n, err := w.file.Read(buffer)
			b := parse(buffer[:max(n, 0)])
			b.of = w
			if err != nil {
				b.err = fmt.Errorf("watching cgroups: %w", err)
			}
			select {
			case batches <- b:
			case <-w.done:
				return
			}
			if err != nil {
				return
			}
		}
	})
	return w, nil
}

// fixLimit says which limit of inotify(7) to raise.
func fixLimit(err error) string {
	switch {
	case errors.Is(err, unix.EMFILE):
		return "; to fix: raise fs.inotify.max_user_instances (sysctl)"
	case errors.Is(err, unix.ENOSPC):
		return "; to fix: raise fs.inotify.max_user_watches (sysctl)"
	}
	return ""
}

// parse reads events as the kernel writes them.
func parse(data []byte) (b batch) {
	seen := map[occurrence]bool{}
	for len(data) >= eventName {
		watch := int32(binary.NativeEndian.Uint32(data)) //nolint:gosec // The kernel writes an int.
		mask := binary.NativeEndian.Uint32(data[eventMask:])
		length := int(binary.NativeEndian.Uint32(data[eventLength:]))
		if length > len(data)-eventName {
			break
		}
		name, _, _ := bytes.Cut(data[eventName:eventName+length], []byte{0})
		data = data[eventName+length:]
		o := occurrence{watch, string(name)}
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
			b.lost = true
		case mask&unix.IN_UNMOUNT != 0:
			b.gone = true
		case mask&unix.IN_IGNORED != 0 || len(name) == 0 || seen[o]:
			// The directory's parent tells of it, too.
		default:
			seen[o] = true
			b.all = append(b.all, o)
		}
	}
	return b
}

// add watches an open directory.
func (w *watcher) add(directory *os.File) (int32, error) {
	// Not by its path, which may be that of another one by now.
	const what = unix.IN_CREATE | unix.IN_DELETE | unix.IN_ONLYDIR
	n, err := unix.InotifyAddWatch(w.fd, "/proc/self/fd/"+strconv.Itoa(int(directory.Fd())), what)
	if err != nil {
		return -1, fmt.Errorf("watching the cgroup %s: %w%s", directory.Name(), err, fixLimit(err))
	}
	return int32(n), nil //nolint:gosec // A watch is an int of the kernel.
}

// remove ends a watch. The kernel may have done so, when the directory was removed; most kernels do not for cgroups.
func (w *watcher) remove(watch int32) {
	_, _ = unix.InotifyRmWatch(w.fd, uint32(watch)) //nolint:gosec // The same bits.
}

func (w *watcher) close() error {
	close(w.done)
	err := w.file.Close()
	w.read.Wait()
	return err
}

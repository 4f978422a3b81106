package lockfile_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/internal/lockfile"
)

// squat binds names of the lock as an ordinary user.
func squat(t *testing.T, from, to int) (end func()) {
	t.Helper()
	none := ^uintptr(0)
	become := func(uid uintptr) {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, none, uid, none); errno != 0 {
			t.Fatal(errno)
		}
	}
	become(1000)
	defer become(0)
	var fds []int
	for i := 2 * from; i < 2*to; i++ {
		fd, err := unix.Socket(unix.AF_UNIX, []int{unix.SOCK_DGRAM, unix.SOCK_STREAM}[i%2]|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("@multihomed/network-namespace/%d", i/2)})
		}
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return func() {
		for _, fd := range fds {
			if err := unix.Close(fd); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestNamespace: one process of ours works in a network namespace, and no ordinary user
// keeps it from that.
func TestNamespace(t *testing.T) {
	// The thread dies with the goroutine, and its namespace with it.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	take := func() *lockfile.Namespace {
		t.Helper()
		n, err := lockfile.TryNamespace(0)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	held := func(when string) {
		t.Helper()
		_, err := lockfile.TryNamespace(0)
		if h, is := errors.AsType[*lockfile.NamespaceHeldError](err); !is || h.UID != 0 {
			t.Errorf("%s: %v", when, err)
		}
	}
	holder := func(want int) {
		t.Helper()
		if pid, held, err := lockfile.NamespaceHolder(0); err != nil || held != (want != 0) || pid != want {
			t.Errorf("the holder is %d (%v, %v), want %d", pid, held, err, want)
		}
	}
	holder(0)
	first := take()
	held("a second one")
	holder(os.Getpid())
	if _, err := lockfile.EndNamespaceHolder(t.Context(), 0); err == nil {
		t.Error("it ends itself")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	end := squat(t, 0, 3)
	first = take()
	held("behind squatters")
	end()
	held("squatters have left")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	end = squat(t, 0, 64)
	holder(0) // Squatters are nobody.
	if _, err := lockfile.TryNamespace(0); !errors.Is(err, lockfile.ErrSquatted) {
		t.Errorf("all are squatted: %v", err)
	}
	end()
	if err := take().Close(); err != nil {
		t.Fatal(err)
	}
}

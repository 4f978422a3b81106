package lockfile_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/internal/lockfile"
)

// ordinary is a user who is nobody's administrator.
const ordinary = 1000

// bindAs binds abstract names as a user, until the test ends or the caller calls what it returns.
func bindAs(t *testing.T, uid uintptr, kind int, names ...string) (end func()) {
	t.Helper()
	none := ^uintptr(0)
	become := func(uid uintptr) {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, none, uid, none); errno != 0 {
			t.Fatal(errno)
		}
	}
	become(uid)
	defer become(0)
	var fds []int
	for _, name := range names {
		fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrUnix{Name: "@" + name})
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

// announcements are the names of announcements in this network namespace.
func announcements(t *testing.T) (names []string) {
	t.Helper()
	// Not /proc/net: that is the network namespace of the process.
	text, err := os.ReadFile("/proc/thread-self/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if _, name, is := strings.Cut(line, " @multihomed/daemon/"); is {
			names = append(names, strings.TrimSuffix(name, "\n"))
		}
	}
	return names
}

// TestAnnounced: everybody in a network namespace learns where its daemon works, and no ordinary
// user says it for the daemon.
func TestAnnounced(t *testing.T) {
	// The thread dies with the goroutine, and its namespace with it.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	announced := func(when string, want lockfile.Workplace, trusted ...uint32) {
		t.Helper()
		w, is, err := lockfile.Announced(append(trusted, 0)...)
		if err != nil || is != (want.Runtime != "") || w != want {
			t.Errorf("%s: %+v, %v, %v; want %+v", when, w, is, err, want)
		}
	}
	nobody := lockfile.Workplace{}
	announced("without a daemon", nobody)
	lock, err := lockfile.TryNamespace(0)
	if err != nil {
		t.Fatal(err)
	}
	announced("with a stand-in, which has the lock alone", nobody)

	long := "/" + strings.Repeat("long and odd \xff@\n", 70)
	for _, w := range []lockfile.Workplace{
		{Runtime: "/run/multihomed", State: "/var/lib/multihomed", Config: "/etc/multihomed/multihomed.toml"},
		{Runtime: "/r", State: "/s", Config: "/c"},
		{Runtime: long + "/r", State: long, Config: "/x/" + long},
	} {
		a, err := lockfile.Announce(w)
		if err != nil {
			t.Fatal(err)
		}
		announced("a daemon", w)
		second, err := lockfile.Announce(another)
		if err != nil {
			t.Fatal(err)
		}
		announced("two daemons, which is impossible with the lock", nobody)
		if err := second.Close(); err != nil {
			t.Fatal(err)
		}
		// Ordinary users.
		names := announcements(t)
		if len(names) == 0 {
			t.Fatal("the kernel shows no name")
		}
		token, _, _ := strings.Cut(names[0], "/")
		evil := "/evil\x00/evil\x00/evil"
		var forged []string
		for _, name := range []string{"00000000/0/1/" + evil, token + "/0/3/" + evil, token + "/5/64/" + evil, token + "/0/1/" + evil, "short/0/1/" + evil, token + "/-1/1/x", token + "/1/1/x", token + "/0/0/x", token + "/0/1/", token + "/0/99999999999999999999/x", token, "", "//" + "/" + evil} {
			forged = append(forged, "multihomed/daemon/"+name)
		}
		end := bindAs(t, ordinary, unix.SOCK_DGRAM, forged...)
		announced("a daemon among forgeries", w)
		announced("a daemon among forgeries of a user who is trusted, and not with these directories", w, ordinary)
		end()
		end = bindAs(t, 0, unix.SOCK_STREAM, "multihomed/daemon/00000000/0/1/"+evil)
		announced("a socket of another type", w)
		end()
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		announced("it has ended", nobody)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	for _, w := range []lockfile.Workplace{{}, {Runtime: "run", State: "/s", Config: "/c"}, {Runtime: "/r\x00/x", State: "/s", Config: "/c"}, {Runtime: strings.Repeat("/long", 10000), State: "/s", Config: "/c"}} {
		if _, err := lockfile.Announce(w); err == nil {
			t.Errorf("%.50q is announced", w.Runtime)
		}
		announced("what is no announcement", nobody)
	}
	// Malformed ones of root, and one that is not complete.
	for _, name := range []string{"00000000/0/2//r\x00/s\x00/c", "00000000/0/1//r\x00/s", "00000000/0/1/r\x00/s\x00/c"} {
		end := bindAs(t, 0, unix.SOCK_DGRAM, "multihomed/daemon/"+name)
		announced(name, nobody)
		end()
	}
}

var another = lockfile.Workplace{Runtime: "/run/2", State: "/state/2", Config: "/config/2"}

// TestAnnouncedByAUser: the user of the service is believed about his own directories only: root
// writes into them.
func TestAnnouncedByAUser(t *testing.T) {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	own, roots := filepath.Join(dir, "own"), filepath.Join(dir, "roots")
	for _, d := range []string{own, roots} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(dir, "link")
	if err := errors.Join(os.Lchown(own, ordinary, ordinary), os.Symlink(own, link)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		runtime, state string
		trusted        uint32
		want           bool
	}{
		{own, own, ordinary, true},
		{own, own, 0, false},
		{own, own, 1001, false},
		{own, roots, ordinary, false},
		{roots, own, ordinary, false},
		{own, filepath.Join(dir, "none"), ordinary, false},
		{link, own, ordinary, false},
		{"/etc", "/etc", ordinary, false},
	} {
		var parts []string
		text := fmt.Sprintf("%s\x00%s\x00/c", c.runtime, c.state)
		const size = 40
		count := (len(text) + size - 1) / size
		for i := range count {
			parts = append(parts, fmt.Sprintf("multihomed/daemon/0123abcd/%d/%d/%s", i, count, text[i*size:min(len(text), (i+1)*size)]))
		}
		end := bindAs(t, ordinary, unix.SOCK_DGRAM, parts...)
		w, is, err := lockfile.Announced(0, c.trusted)
		if err != nil || is != c.want || is && w != (lockfile.Workplace{Runtime: c.runtime, State: c.state, Config: "/c"}) {
			t.Errorf("%+v: %+v, %v, %v", c, w, is, err)
		}
		end()
	}
}

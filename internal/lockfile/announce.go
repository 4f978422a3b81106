package lockfile

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A running daemon keeps its directories, whatever its file says by now. So it announces them,
// where everybody in its network namespace finds them without an answer of it: in abstract names
// of Unix sockets (unix(7)), which end with it, as the lock does. A name has room for 107 bytes; a longer
// announcement has several:
//
//	multihomed/daemon/TOKEN/NUMBER/COUNT/PART
//
// The token is random: it tells the parts of one daemon from those of another, and nobody can bind
// the name first. The parts together are the three paths, separated by NUL, which no path has.
const (
	announcementName = "multihomed/daemon/"
	// tokenSize is that of the token, in bytes.
	tokenSize = 4
	// mostParts bounds an announcement: three paths of PATH_MAX need more, and nobody has such.
	mostParts = 64
	// nameSize is what package unix takes of an abstract name: one byte less than the kernel.
	nameSize = 106
)

// A Workplace is where a daemon works.
type Workplace struct {
	// Runtime and State are its directories, Config is its configuration file; absolute paths.
	Runtime, State, Config string
}

func (w Workplace) text() string { return strings.Join([]string{w.Runtime, w.State, w.Config}, "\x00") }

func workplaceOf(text string) (w Workplace, is bool) {
	paths := strings.Split(text, "\x00")
	if len(paths) != 3 || slices.ContainsFunc(paths, func(p string) bool { return !filepath.IsAbs(p) }) {
		return Workplace{}, false
	}
	return Workplace{Runtime: paths[0], State: paths[1], Config: paths[2]}, true
}

// An Announcement stands until Close.
type Announcement struct{ fds []int }

// Close takes the announcement back.
func (a *Announcement) Close() error {
	var err error
	for _, fd := range a.fds {
		err = errors.Join(err, unix.Close(fd))
	}
	a.fds = nil
	return err
}

// Announce tells the network namespace where this process, the daemon, works. Call it with the
// lock of the network namespace.
func Announce(w Workplace) (_ *Announcement, err error) {
	doing := func(err error) error { return fmt.Errorf("announcing the directories of the daemon: %w", err) }
	if _, is := workplaceOf(w.text()); !is {
		return nil, doing(fmt.Errorf("%+v are no absolute paths", w))
	}
	token := make([]byte, tokenSize)
	if _, err := rand.Read(token); err != nil {
		return nil, doing(err)
	}
	head := announcementName + hex.EncodeToString(token)
	room := nameSize - len(fmt.Sprintf("%s/%d/%d/", head, mostParts, mostParts))
	parts := slices.Collect(slices.Chunk([]byte(w.text()), room))
	if len(parts) > mostParts {
		return nil, doing(errors.New("they are too long"))
	}
	a := &Announcement{}
	defer func() {
		if err != nil {
			err = errors.Join(doing(err), a.Close())
		}
	}()
	for i, part := range parts {
		fd, err := mute()
		if err != nil {
			return nil, err
		}
		a.fds = append(a.fds, fd)
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("@%s/%d/%d/%s", head, i, len(parts), part)}); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// Announced returns where the daemon of this network namespace works, if one runs and says so. It
// needs no answer of that daemon, which may hang. A stand-in announces nothing.
//
// It believes one of the trusted users. What another user than root or this process's own
// announces, must be directories of that user: root writes into them.
func Announced(trusted ...uint32) (w Workplace, is bool, err error) {
	all, err := named(announcementName)
	if err != nil {
		return Workplace{}, false, err
	}
	announcements := map[announcer][]string{}
	for name, s := range all {
		by, number, count, part, is := partOf(name)
		if !is || !slices.Contains(trusted, s.uid) {
			continue
		}
		by.uid, by.count = s.uid, count
		if announcements[by] == nil {
			announcements[by] = make([]string, count)
		}
		announcements[by][number] = part
	}
	found := 0
	for by, parts := range announcements {
		if slices.Contains(parts, "") {
			continue // It comes or goes at this moment.
		}
		if one, is := workplaceOf(strings.Join(parts, "")); is && by.mayName(one) {
			w = one
			found++
		}
	}
	// Two daemons work in one network namespace only where ordinary users hold its lock: then
	// nobody knows which one counts.
	if found != 1 {
		return Workplace{}, false, nil
	}
	return w, true, nil
}

// An announcer is who bound the parts of one announcement.
type announcer struct {
	token string
	uid   uint32
	count int
}

// mayName reports whether the directories are of the announcer, where he is neither root nor the
// user of this process.
func (a announcer) mayName(w Workplace) bool {
	if a.uid == 0 || a.uid == uint32(os.Geteuid()) { //nolint:gosec // user numbers are 32 bits wide
		return true
	}
	for _, directory := range []string{w.Runtime, w.State} {
		info, err := os.Lstat(directory)
		if err != nil || !info.IsDir() {
			return false
		}
		if owner, is := info.Sys().(*syscall.Stat_t); !is || owner.Uid != a.uid {
			return false
		}
	}
	return true
}

// partOf takes a name apart.
func partOf(name string) (by announcer, number, count int, part string, is bool) {
	rest, ours := strings.CutPrefix(name, announcementName)
	words := strings.SplitN(rest, "/", 4)
	if !ours || len(words) != 4 || len(words[0]) != 2*tokenSize || words[3] == "" {
		return announcer{}, 0, 0, "", false
	}
	number, err := strconv.Atoi(words[1])
	count, err2 := strconv.Atoi(words[2])
	if err != nil || err2 != nil || count < 1 || count > mostParts || number < 0 || number >= count {
		return announcer{}, 0, 0, "", false
	}
	return announcer{token: words[0]}, number, count, words[3], true
}

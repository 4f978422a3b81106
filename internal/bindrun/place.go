package bindrun

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"multihomed/internal/fsutil"
)

// A home is where a process is in the hierarchy of cgroup v2.
type home struct {
	// path is the directory of its cgroup.
	path string
	// name is the cgroup, as /proc/self/cgroup has it.
	name string
}

// errNoCgroup says that this process cannot get a cgroup.
var errNoCgroup = errors.New("no cgroup can be made")

// largestProc bounds what is read of a file of proc(5), in bytes.
const largestProc = 4 << 20

// findHome looks for the cgroup of this process.
func findHome() (home, error) {
	own, err := fsutil.ReadFile("/proc/self/cgroup", largestProc)
	if err != nil {
		return home{}, fmt.Errorf("%w: %w", errNoCgroup, err)
	}
	mounts, err := fsutil.ReadFile("/proc/self/mountinfo", largestProc)
	if err != nil {
		return home{}, fmt.Errorf("%w: %w", errNoCgroup, err)
	}
	all, err := homesOf(string(own), string(mounts))
	if err != nil {
		return home{}, fmt.Errorf("%w: %w", errNoCgroup, err)
	}
	// A mount may be under another one, or read-only.
	all = slices.DeleteFunc(all, func(h home) bool { return !h.exists() })
	if at := slices.IndexFunc(all, home.mayMake); at >= 0 {
		return all[at], nil
	}
	if len(all) == 0 {
		return home{}, fmt.Errorf("%w: %w", errNoCgroup, errUnmounted)
	}
	return all[0], nil
}

var errUnmounted = errors.New("cgroup v2 is not mounted here; to fix: mount -t cgroup2 none /sys/fs/cgroup")

// exists reports whether the directory is that of a cgroup.
func (h home) exists() bool {
	var s unix.Statfs_t
	return unix.Statfs(h.path, &s) == nil && s.Type == unix.CGROUP2_SUPER_MAGIC
}

// homesOf finds the directories of a cgroup by /proc/self/cgroup (cgroups(7)) and /proc/self/mountinfo (proc(5)).
func homesOf(own, mounts string) (all []home, err error) {
	_, name, found := strings.Cut("\n"+own, "\n0::")
	if !found {
		return nil, errors.New("the kernel has no cgroup v2; to fix: boot without systemd.unified_cgroup_hierarchy=0")
	}
	name, _, _ = strings.Cut(name, "\n")
	// A process that moved out of its cgroup namespace sees /.. here.
	if !strings.HasPrefix(name, "/") || slices.Contains(strings.Split(name, "/"), "..") {
		return nil, fmt.Errorf("the cgroup of this process (%s) is outside of its namespace", name)
	}
	for line := range strings.Lines(mounts) {
		before, after, _ := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(kind) < 1 || kind[0] != "cgroup2" {
			continue
		}
		root, point := unescape(fields[3]), unescape(fields[4])
		below, is := strings.CutPrefix(name, strings.TrimSuffix(root, "/"))
		if is && (below == "" || below[0] == '/') {
			all = append(all, home{path: filepath.Join(point, below), name: name})
		}
	}
	if len(all) == 0 {
		return nil, errUnmounted
	}
	return all, nil
}

// unescape reads a path of mountinfo, where white space and backslashes are octal.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// prefix begins the names of our cgroups and scopes.
const prefix = "multihomed-run-"

// open opens the cgroup of this process.
func (h home) open() (*os.File, error) {
	f, err := os.Open(h.path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoCgroup, err)
	}
	return f, nil
}

// mayMake reports whether this process may make a cgroup in its own and go there (cgroups(7), "Cgroups delegation").
func (h home) mayMake() bool {
	return unix.Access(h.path, unix.W_OK|unix.X_OK) == nil && unix.Access(filepath.Join(h.path, "cgroup.procs"), unix.W_OK) == nil
}

// make makes a cgroup below that of this process, and locks it: one without a lock may be removed when it is empty.
func (h home) make() (*os.File, error) {
	h.sweep()
	for {
		path, err := os.MkdirTemp(h.path, prefix+"*")
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errNoCgroup, err)
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // Another process swept it before it was locked.
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errNoCgroup, err)
		}
		err = errors.Join(f.Chmod(0o755), flock(f, unix.LOCK_EX))
		if err == nil && unix.Access(filepath.Join(path, "cgroup.procs"), unix.F_OK) == nil {
			return f, nil
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("%w: %w", errNoCgroup, errors.Join(err, unix.Rmdir(path)))
		}
	}
}

// sweep removes cgroups that attendants left which were killed.
func (h home) sweep() {
	all, err := os.ReadDir(h.path)
	if err != nil {
		return
	}
	for _, e := range all {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		path := filepath.Join(h.path, e.Name())
		f, err := os.Open(path)
		if err != nil {
			continue // Removed since, or somebody else's.
		}
		if flock(f, unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = unix.Rmdir(path) // Processes are left in it.
		}
		_ = f.Close() // It was only locked.
	}
}

func flock(f *os.File, how int) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		for failed = unix.EINTR; errors.Is(failed, unix.EINTR); {
			failed = unix.Flock(int(fd), how)
		}
	})
	return errors.Join(err, failed)
}

// enter moves this process into a cgroup.
func enter(cgroup *os.File) error {
	// Its path, because os has no openat: the process holds the directory open, and the path is its own.
	err := os.WriteFile(filepath.Join(cgroup.Name(), "cgroup.procs"), []byte("0"), 0)
	if err != nil {
		return fmt.Errorf("entering the cgroup of the program: %w", err)
	}
	return nil
}

// Package unitfile reads from systemd's symbolic links, without asking systemd, whether a
// service is enabled, disabled or masked (systemd.unit(5), "systemctl enable" and
// "mask"): hooks need that early in the boot and while systemd is busy.
package unitfile

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Service is the unit of the daemon.
const Service = "multihomed.service"

// A State is what the links of a unit say.
type State uint8

// States. A unit that is not installed, on a host without systemd too, is Unknown.
const (
	Unknown State = iota
	Enabled
	Disabled
	Masked
)

func (s State) String() string {
	switch s {
	case Enabled:
		return "enabled"
	case Disabled:
		return "disabled"
	case Masked:
		return "masked"
	default:
		return "not installed"
	}
}

// Unwanted reports whether the administrator keeps the unit from running.
func (s State) Unwanted() bool { return s == Disabled || s == Masked }

// Enable starts the daemon where its service is not masked.
const Enable = "systemctl enable --now multihomed"

// Restart starts the daemon where its service is wanted, also after it has failed.
const Restart = "systemctl restart multihomed"

// Start is the command that starts the daemon, whatever the state of its unit. A mask in /run is another one than that in /etc (systemctl(1), --runtime).
func Start(root fs.FS) string {
	state, in := find(root, Service)
	switch {
	case state != Masked:
		return Enable
	case strings.HasPrefix(in, "run/"):
		return "systemctl unmask --runtime multihomed && " + Enable
	default:
		return "systemctl unmask multihomed && " + Enable
	}
}

// directories is the search path of the system manager, the first one first. They hold
// units and links to them.
func directories() []string {
	return []string{
		"etc/systemd/system.control", "run/systemd/system.control", "run/systemd/transient",
		"etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system",
	}
}

// booted is there where systemd is process 1 (sd_booted(3)).
const booted = "run/systemd/system"

// Read returns the state of a unit below the host's root directory. It ignores what it cannot
// read.
func Read(root fs.FS, unit string) State {
	state, _ := find(root, unit)
	return state
}

// find is Read with the directory that holds the unit or its mask.
func find(root fs.FS, unit string) (state State, in string) {
	for _, d := range directories() {
		info, err := lstat(root, path.Join(d, unit))
		if err != nil {
			continue
		}
		if masks(root, path.Join(d, unit), info) {
			return Masked, d
		}
		state, in = Disabled, d
		break
	}
	// Without systemd nobody enables units.
	if _, err := fs.Stat(root, booted); state == Unknown || err != nil {
		return Unknown, ""
	}
	for _, d := range directories() {
		entries, err := fs.ReadDir(root, d)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				return Unknown, ""
			}
			continue
		}
		if slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return wants(root, d, e.Name(), unit) }) {
			return Enabled, in
		}
	}
	return state, in
}

// wants reports whether a directory such as multi-user.target.wants holds a link to the
// unit.
func wants(root fs.FS, directory, entry, unit string) bool {
	if !strings.HasSuffix(entry, ".wants") && !strings.HasSuffix(entry, ".requires") && !strings.HasSuffix(entry, ".upholds") {
		return false
	}
	_, err := lstat(root, path.Join(directory, entry, unit))
	return err == nil
}

// masks reports whether a unit file is empty or a link to /dev/null.
func masks(root fs.FS, name string, info fs.FileInfo) bool {
	if info.Mode()&fs.ModeSymlink != 0 {
		to, err := fs.ReadLink(root, name)
		return err == nil && path.Join("/", path.Dir(name), to) == "/dev/null" || err == nil && path.Clean(to) == "/dev/null"
	}
	return info.Mode().IsRegular() && info.Size() == 0
}

func lstat(root fs.FS, name string) (fs.FileInfo, error) { return fs.Lstat(root, name) }

package check

import (
	"io/fs"
	"syscall"

	"multihomed/internal/status/view"
	"multihomed/internal/unitfile"
	"multihomed/routing"
)

// scriptName is what NetworkManager's dispatcher knows our program as.
const scriptName = "90-multihomed"

// checkDispatcher finds a dispatcher script that NetworkManager would not run
// (check_permissions in src/nm-dispatcher/nm-dispatcher.c). One in /etc hides one
// in /usr; an empty file, or a link to /dev/null, is how an administrator
// switches it off.
func checkDispatcher(_ *view.View, f files) []routing.Problem {
	for _, directory := range []string{"etc/NetworkManager/dispatcher.d", "usr/lib/NetworkManager/dispatcher.d"} {
		path := directory + "/" + scriptName
		found, err := fs.Lstat(f.root, path)
		if err != nil {
			continue
		}
		info, err := fs.Stat(f.root, path)
		if err != nil {
			return ignored(path, "it leads to nothing", reinstall)
		}
		stat, known := info.Sys().(*syscall.Stat_t)
		switch {
		case info.Mode().IsRegular() && info.Size() == 0, info.Mode()&fs.ModeCharDevice != 0 && found.Mode()&fs.ModeSymlink != 0:
			return nil
		case !info.Mode().IsRegular():
			return ignored(path, "it is no regular file", reinstall)
		case known && stat.Uid != 0:
			return ignored(path, "it does not belong to root", "chown root:root /"+path)
		case info.Mode().Perm()&0o022 != 0:
			return ignored(path, "others than root may write to it", "chmod go-w /"+path)
		case info.Mode()&fs.ModeSetuid != 0:
			return ignored(path, "it is setuid", "chmod u-s /"+path)
		case info.Mode().Perm()&0o100 == 0:
			return ignored(path, "it is not executable", "chmod +x /"+path)
		case dispatcherIsOff(f):
			return ignored(path, "its dispatcher is not enabled", "systemctl enable NetworkManager-dispatcher")
		}
		return nil
	}
	return nil
}

// dispatcherIsOff reports whether the bus cannot start the dispatcher: it asks
// systemd for a name that the unit has only if it is enabled.
func dispatcherIsOff(f files) bool {
	if !f.exists("run/systemd/system") || !f.exists("usr/lib/systemd/system/NetworkManager-dispatcher.service") {
		return false
	}
	// Where the administrator keeps NetworkManager from running, nobody would call it, and
	// nobody is told to bring in a second manager.
	if unitfile.Read(f.root, "NetworkManager.service").Unwanted() {
		return false
	}
	return !f.exists("etc/systemd/system/dbus-org.freedesktop.nm-dispatcher.service")
}

// reinstall is what no command does that fits every system.
const reinstall = "install multihomed again"

func ignored(path, why, fix string) []routing.Problem {
	var commands routing.Commands
	if fix != reinstall {
		commands = routing.CommandsOf(fix)
	}
	return []routing.Problem{{
		Severity: routing.Warning,
		Text:     "NetworkManager ignores /" + path + ", because " + why + ": while multihomed.service is stopped, rules and routes do not follow changes",
		Fix:      fix, Commands: commands,
	}}
}

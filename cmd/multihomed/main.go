// Multihomed is one program with several names, and the name by which it is called
// decides what it does: multihomed is the daemon, multihomectl the administrator's
// tool, multihomed-dispatcher the hook that network managers call, multihomed-prober the
// process without rights that probes links for the daemon, multihomed-binder the one that
// may bind cgroups to links. What is installed is the daemon, and symbolic links to it.
package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"multihomed/internal/hangup"
)

// version is set by the linker.
var version = "development"

// daemonName is the name of the installed file. Under an unknown name it is the daemon.
const daemonName = "multihomed"

// A call is how the program was called.
type call struct {
	args []string
	// hint follows an error in the arguments. It is empty unless the name was unknown.
	hint string
}

// programs are the names, and what the program does under each. They return the exit
// status.
//
//nolint:gochecknoglobals // a constant in all but name
var programs = map[string]func(call) int{
	daemonName:              runDaemon,
	"multihomectl":          runCtl,
	"multihomed-dispatcher": runDispatcher,
	"multihomed-prober":     runProber,
	"multihomed-binder":     runBinder,
	// NetworkManager calls what is in dispatcher.d by the name it has there.
	"90-multihomed": runDispatcher,
}

func main() {
	name, known := nameOf(os.Args[0])
	if name != daemonName {
		hangup.GiveBack()
	}
	c := call{args: os.Args[1:]}
	if !known {
		c.hint = fmt.Sprintf("; under the name %q it is the daemon, and its other names are %s",
			filepath.Base(os.Args[0]), strings.Join(others(), ", "))
	}
	os.Exit(programs[name](c))
}

// maxLinks is how many symbolic links the kernel follows (MAXSYMLINKS in
// include/linux/namei.h).
const maxLinks = 40

// nameOf returns the name among programs that a path means. An administrator may have made
// symbolic links to one of them under other names: the first link with a known name
// decides. A path that leads to no known name means the daemon.
func nameOf(path string) (name string, known bool) {
	// Most calls end here, without a look at the disk.
	if base := filepath.Base(path); programs[base] != nil {
		return base, true
	}
	if !strings.Contains(path, "/") {
		path = inPath(path)
	}
	for range maxLinks {
		target, err := os.Readlink(path)
		if err != nil {
			return daemonName, false
		}
		if !filepath.IsAbs(target) {
			// Not cleaned: where directories are links, only the kernel knows what ".." is.
			target = path[:strings.LastIndexByte(path, '/')+1] + target
		}
		path = target
		if base := filepath.Base(path); programs[base] != nil {
			return base, true
		}
	}
	return daemonName, false
}

// inPath returns the first file of a name in PATH, where a shell found it, or the name
// itself.
func inPath(name string) string {
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 { //nolint:gosec // It is the caller's own PATH.
			return path
		}
	}
	return name
}

// others are the names of the other programs that users call, sorted.
func others() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(programs)), func(name string) bool {
		return name == daemonName || !strings.HasPrefix(name, "multihome")
	})
}

package machine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/test/lab"
)

// The releases of Debian that machines are made of.
const (
	Bookworm = "bookworm" // 12
	Trixie   = "trixie"   // 13
)

// Environment variables that change where roots come from and where they are kept.
const (
	CacheEnv  = "MULTIHOMED_TEST_CACHE"  // the directory of the roots and whatever else is made once
	MirrorEnv = "MULTIHOMED_TEST_MIRROR" // a Debian mirror instead of apt's
)

const defaultMirror = "http://deb.debian.org/debian"

// packages are what a root has on top of what every Debian has. libpam-systemd is
// the default-logind that polkitd depends on: debootstrap does not know who
// provides what.
const packages = "systemd,systemd-sysv,libpam-systemd,dbus,udev,network-manager,iproute2,iputils-ping,procps,kmod,ca-certificates"

// masked are units that cost time, or fail without a network, and are no
// business of ours: a timer that fires during a test makes the system degraded.
const masked = `
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer
	e2scrub_all.timer e2scrub_reap.service fstrim.timer
	systemd-tmpfiles-clean.timer console-getty.service getty.target`

// removed are files that debootstrap copies from the host, caches, and what no
// two machines may share.
const removed = `
	etc/hostname etc/resolv.conf etc/machine-id var/lib/dbus/machine-id
	var/cache/apt/archives/*.deb var/lib/apt/lists/*_* var/log/bootstrap.log`

// With is a release with more packages of Debian, for Main and Config. Its root is made of that of the release.
func With(release string, more ...string) string { return release + "+" + strings.Join(more, ",") }

// rootDir is where a release's root is cached. The recipe is a part of the name,
// so that a root of another recipe is not taken for this one.
func rootDir(release string) (string, error) {
	base, more, _ := strings.Cut(release, "+")
	if base != Bookworm && base != Trixie {
		return "", fmt.Errorf("release %q: only %s and %s are known", base, Bookworm, Trixie)
	}
	recipe := sha256.Sum256([]byte(packages + masked + removed + more))
	return cachePath(fmt.Sprintf("%s-%x", base, recipe[:4])), nil
}

// Root returns the directory of a Debian release as debootstrap makes it. It is made on the first
// call, which takes about a minute, and kept between runs, read-only. The call needs the host's
// network, which a lab does not have: Main makes it before it enters one.
func Root(ctx context.Context, release string) (dir string, err error) {
	dir, err = rootDir(release)
	if err != nil {
		return "", err
	}
	if isDir(dir) {
		return dir, nil
	}
	if lab.Inside() {
		return "", fmt.Errorf("no root of %s in %s, and a lab has no network to make it from: pass %q to machine.Main", release, dir, release)
	}
	if err := checkPrograms(true); err != nil {
		return "", err
	}
	fill := func(tmp string) error { return build(ctx, release, tmp, dir) }
	if base, more, is := strings.Cut(release, "+"); is {
		lower, err := Root(ctx, base)
		if err != nil {
			return "", err
		}
		fill = func(tmp string) error { return extend(ctx, lower, strings.Split(more, ","), tmp) }
	}
	err = cached(ctx, dir, fill)
	if err != nil {
		return "", fmt.Errorf("making a root of %s: %w", release, err)
	}
	return dir, nil
}

// build makes a root in tmp, which becomes dir.
func build(ctx context.Context, release, tmp, dir string) error {
	mirror, err := Mirror(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "machine: making a root of %s from %s in %s, this takes a minute\n", release, mirror, dir)
	env, err := proxies(ctx, hostEnv())
	if err != nil {
		return err
	}
	out, err := isolated(ctx, env, "debootstrap", "--variant=minbase",
		"--include="+packages, release, tmp, mirror)
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(tmp, "debootstrap/debootstrap.log"))
		return fmt.Errorf("debootstrap: %w: %s\n%s", err, lab.Tail(out, 10), lab.Tail(string(log), 20))
	}
	return finish(tmp)
}

// extend makes a root in tmp of another one and more packages.
func extend(ctx context.Context, lower string, more []string, tmp string) error {
	fmt.Fprintf(os.Stderr, "machine: installing %s into a copy of %s, this takes a minute\n", strings.Join(more, ", "), lower)
	env, err := proxies(ctx, hostEnv())
	if err != nil {
		return err
	}
	// The resolver is the host's while apt asks the mirror, and nothing starts in a chroot.
	const script = `cp -a --reflink=auto "$1/." "$2"; cp -L /etc/resolv.conf "$2/etc/resolv.conf"; mount -t proc proc "$2/proc"
root=$2; shift 2
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"; chmod 755 "$root/usr/sbin/policy-rc.d"
chroot "$root" apt-get -q update
DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get -qy install --no-install-recommends "$@"
rm "$root/usr/sbin/policy-rc.d"; umount "$root/proc"`
	if out, err := isolated(ctx, env, "sh", append([]string{"-ec", script, "sh", lower, tmp}, more...)...); err != nil {
		return fmt.Errorf("installing %s: %w: %s", strings.Join(more, ", "), err, lab.Tail(out, 20))
	}
	return finish(tmp)
}

// finish makes a fresh root ready to be booted in a container.
func finish(root string) error {
	for pattern := range strings.FieldsSeq(removed) {
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return err
		}
		for _, path := range paths {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	units := filepath.Join(root, "etc/systemd/system")
	for unit := range strings.FieldsSeq(masked) {
		path := filepath.Join(units, unit)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Symlink(os.DevNull, path); err != nil {
			return err
		}
	}
	return nil
}

// isolated runs a program with the host's network, and with its own mounts and processes: whatever
// ends it, nothing keeps running or stays mounted.
func isolated(ctx context.Context, env []string, program string, args ...string) (string, error) {
	path, err := lab.LookPath("", program)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = env
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   unix.CLONE_NEWPID,
		Unshareflags: unix.CLONE_NEWNS, // and private, which Cloneflags does not make them
		Pdeathsig:    syscall.SIGKILL,
	}
	cmd.WaitDelay = 5 * time.Second
	// The kernel sends Pdeathsig when the thread that forked ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Run()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return out.String(), err
}

// hostEnv is the environment with a search path that has sbin.
func hostEnv() []string {
	return append(os.Environ(), "PATH="+lab.SearchPath, "LC_ALL=C.UTF-8")
}

// Mirror is where apt gets Debian from, or Debian's own mirror; MirrorEnv
// overrides both.
func Mirror(ctx context.Context) (string, error) {
	if mirror := os.Getenv(MirrorEnv); mirror != "" {
		return mirror, nil
	}
	if !have("apt-get") {
		return defaultMirror, nil
	}
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets",
		"--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("asking apt for its mirrors (%s overrides them): %w", MirrorEnv, err)
	}
	for line := range strings.Lines(string(out)) {
		uri, ok := strings.CutPrefix(strings.TrimSpace(line), "Debian ")
		if ok && (strings.HasPrefix(uri, "http://") || strings.HasPrefix(uri, "https://")) {
			return strings.TrimSuffix(uri, "/"), nil
		}
	}
	return defaultMirror, nil
}

// proxies adds apt's proxies to an environment that has none: debootstrap asks
// wget, which does not know apt's configuration.
func proxies(ctx context.Context, env []string) ([]string, error) {
	if !have("apt-config") {
		return env, nil
	}
	for _, scheme := range []string{"http", "https"} {
		name := scheme + "_proxy"
		if os.Getenv(name) != "" {
			continue
		}
		out, err := exec.CommandContext(ctx, "apt-config", "--format", "%v%n", "dump", "Acquire::"+scheme+"::Proxy").Output()
		if err != nil {
			return nil, fmt.Errorf("asking apt for its %s: %w", name, err)
		}
		if proxy := strings.TrimSpace(string(out)); proxy != "" && proxy != "DIRECT" {
			env = append(env, name+"="+proxy)
		}
	}
	return env, nil
}

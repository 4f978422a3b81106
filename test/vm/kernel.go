package vm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"multihomed/test/lab"
	"multihomed/test/machine"
)

// A kernel is one that a Debian release ships.
type kernel struct {
	image   string   // what boots
	modules string   // the directory that is /usr/lib/modules
	first   []string // modules of the initial file system, in the order of loading
}

// drivers are the modules without which there is no file tree and no agent.
var drivers = []string{"virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay", "virtio_blk", "crc32c_generic", "ext4"} //nolint:gochecknoglobals // a table

// keyring has the keys of Debian's releases.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// kernelOf returns the kernel of a release. The first call gets it with apt, which
// takes some seconds; it is kept between runs.
func kernelOf(ctx context.Context, release string) (kernel, error) {
	if release != machine.Bookworm && release != machine.Trixie {
		return kernel{}, fmt.Errorf("release %q: only %s and %s are known", release, machine.Bookworm, machine.Trixie)
	}
	recipe := sha256.Sum256([]byte(strings.Join(drivers, " ")))
	dir, err := machine.Cached(ctx, fmt.Sprintf("linux-%s-%x", release, recipe[:4]), func(dir string) error {
		return fetch(ctx, release, dir)
	})
	if err != nil {
		return kernel{}, err
	}
	k := kernel{modules: filepath.Join(dir, "modules")}
	if k.first, err = filepath.Glob(filepath.Join(dir, "first", "*.ko")); err != nil {
		return kernel{}, err
	}
	k.image = filepath.Join(dir, "vmlinuz")
	return k, nil
}

// fetch fills dir with vmlinuz, modules and first.
func fetch(ctx context.Context, release, dir string) error {
	if lab.Inside() {
		return errors.New("a lab has no network to get it from: run the tests of test/vm once")
	}
	err := checkPrograms(requirement{"apt-get", "apt"}, requirement{"dpkg-deb", "dpkg"}, requirement{"depmod", "kmod"}, requirement{"xz", "xz-utils"})
	if err != nil {
		return err
	}
	if _, err := os.Stat(keyring); err != nil {
		return fmt.Errorf("%s not found: test/lab/install-requirements debian-archive-keyring", keyring)
	}
	mirror, err := machine.Mirror(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "vm: getting the kernel of %s from %s\n", release, mirror)
	deb, err := download(ctx, release, mirror, dir)
	if err != nil {
		return err
	}
	tree := filepath.Join(dir, "tree")
	if _, err := command(ctx, dir, "dpkg-deb", "-x", deb, tree); err != nil {
		return err
	}
	// bookworm has them in /lib, trixie in /usr/lib.
	versions, err := filepath.Glob(filepath.Join(tree, "usr/lib/modules/*"))
	if len(versions) == 0 && err == nil {
		versions, err = filepath.Glob(filepath.Join(tree, "lib/modules/*"))
	}
	if err != nil || len(versions) != 1 {
		return fmt.Errorf("%s has modules of %d kernels (%w)", filepath.Base(deb), len(versions), err)
	}
	version := filepath.Base(versions[0])
	// depmod wants them where they will be.
	modules := filepath.Join(dir, "lib/modules")
	if err := os.MkdirAll(filepath.Dir(modules), 0o755); err != nil {
		return err
	}
	if err := os.Rename(filepath.Dir(versions[0]), modules); err != nil {
		return err
	}
	if _, err := command(ctx, dir, "depmod", "-b", dir, version); err != nil {
		return err
	}
	if err := os.Rename(modules, filepath.Join(dir, "modules")); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(tree, "boot/vmlinuz-"+version), filepath.Join(dir, "vmlinuz")); err != nil {
		return err
	}
	if err := first(ctx, filepath.Join(dir, "modules", version), filepath.Join(dir, "first")); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(tree), os.RemoveAll(filepath.Join(dir, "lib")), os.Remove(deb))
}

// download gets the newest kernel package of a release, with separate package lists, and returns
// its path in dir.
func download(ctx context.Context, release, mirror, dir string) (deb string, err error) {
	state, err := os.MkdirTemp("", "multihomed-apt")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(state)) }()
	for _, d := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(state, d), 0o755); err != nil {
			return "", err
		}
	}
	sources := filepath.Join(state, "sources.list")
	line := fmt.Sprintf("deb [signed-by=%s] %s %s main\n", keyring, mirror, release)
	if err := os.WriteFile(sources, []byte(line), 0o644); err != nil {
		return "", err
	}
	apt := func(program string, args ...string) (string, error) {
		return command(ctx, dir, program, append([]string{
			"-qq", "-o", "Dir::Etc::SourceList=" + sources, "-o", "Dir::Etc::SourceParts=-",
			"-o", "Dir::State::Lists=" + filepath.Join(state, "lists"), "-o", "Dir::Cache=" + state,
			"-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none",
		}, args...)...)
	}
	if _, err := apt("apt-get", "update"); err != nil {
		return "", err
	}
	depends, err := apt("apt-cache", "depends", "linux-image-amd64")
	if err != nil {
		return "", err
	}
	var image string
	for line := range strings.Lines(depends) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(name, "linux-image-") {
			image = name
			break
		}
	}
	if image == "" {
		return "", fmt.Errorf("linux-image-amd64 of %s depends on no kernel: %s", release, depends)
	}
	if _, err := apt("apt-get", "download", image); err != nil {
		return "", err
	}
	found, err := filepath.Glob(filepath.Join(dir, image+"_*.deb"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("files of %s: %v (%w)", image, found, err)
	}
	return found[0], nil
}

// first copies the drivers and what they need to a directory, numbered in the order
// of loading and not compressed.
func first(ctx context.Context, modules, to string) error {
	depends, err := os.ReadFile(filepath.Join(modules, "modules.dep"))
	if err != nil {
		return err
	}
	builtin, err := os.ReadFile(filepath.Join(modules, "modules.builtin"))
	if err != nil {
		return err
	}
	order, err := loadOrder(string(depends), string(builtin), drivers)
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	for i, path := range order {
		from := filepath.Join(modules, path)
		data, err := os.ReadFile(from)
		if strings.HasSuffix(path, ".xz") {
			var out string
			out, err = command(ctx, modules, "xz", "-dc", from)
			data = []byte(out)
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, fmt.Sprintf("%02d-%s.ko", i, moduleName(path))), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// moduleName is the module in a file: 9pnet_virtio of kernel/net/9p/9pnet_virtio.ko.xz.
// The files' names may have a hyphen where the modules' have an underscore.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// loadOrder resolves modules by modules.dep(5), whose lines have a file and all that
// it needs, the last to be loaded first.
func loadOrder(depends, builtin string, names []string) ([]string, error) {
	needs := map[string][]string{}
	for line := range strings.Lines(depends) {
		if file, rest, ok := strings.Cut(line, ":"); ok {
			order := strings.Fields(rest)
			slices.Reverse(order)
			needs[moduleName(file)] = append(order, file)
		}
	}
	known := map[string]bool{}
	for line := range strings.Lines(builtin) {
		known[moduleName(strings.TrimSpace(line))] = true
	}
	var out []string
	for _, name := range names {
		if needs[name] == nil && !known[name] {
			return nil, fmt.Errorf("the kernel has no module %s", name)
		}
		for _, file := range needs[name] {
			if !slices.Contains(out, file) {
				out = append(out, file)
			}
		}
	}
	return out, nil
}

// command runs a program of the host and returns its standard output; an error has
// what it wrote.
func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	path, err := lab.LookPath("", name)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+lab.SearchPath, "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, lab.Tail(errs.String(), 10))
	}
	return out.String(), nil
}

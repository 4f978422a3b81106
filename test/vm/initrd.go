package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"multihomed/test/vm/internal/wire"
)

// guestProgram is the static program that runs inside, built once for all machines
// of this process.
//
//nolint:gochecknoglobals // a cache
var guestProgram = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "multihomed-guest")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "guest")
	cmd := exec.CommandContext(context.Background(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w",
		"-o", path, "multihomed/test/vm/internal/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the guest: %w\n%s", err, out)
	}
	return os.ReadFile(path)
})

// initrd is the initial file system: the guest as /init, the first modules and what
// it has to know.
func initrd(k kernel, b wire.Boot) ([]byte, error) {
	guest, err := guestProgram()
	if err != nil {
		return nil, err
	}
	var a archive
	a.add("init", modeFile|0o755, guest)
	a.add("modules", modeDir|0o755, nil)
	for _, from := range k.first {
		data, err := os.ReadFile(from)
		if err != nil {
			return nil, fmt.Errorf("making the initial file system: %w", err)
		}
		path := "modules/" + filepath.Base(from)
		a.add(path, modeFile|0o644, data)
		b.Modules = append(b.Modules, "/"+path)
	}
	config, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("making the initial file system: %w", err)
	}
	a.add(wire.BootFile[1:], modeFile|0o644, config)
	return a.close(), nil
}

// Of st_mode, inode(7).
const (
	modeDir  = 0o040000
	modeFile = 0o100000
)

// An archive is a cpio in the format "newc", which the kernel unpacks
// (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	bytes.Buffer
	entries uint32
}

func (a *archive) add(name string, mode uint32, data []byte) {
	a.entries++
	fields := []any{
		a.entries, mode, 0, 0, 1, 0, len(data), // inode, mode, uid, gid, links, mtime, size
		0, 0, 0, 0, len(name) + 1, 0, // two devices, length of the name, checksum
	}
	a.WriteString("070701")
	for _, f := range fields {
		fmt.Fprintf(a, "%08x", f)
	}
	a.WriteString(name + "\x00")
	a.pad()
	a.Write(data)
	a.pad()
}

func (a *archive) pad() {
	for a.Len()%4 != 0 {
		a.WriteByte(0)
	}
}

func (a *archive) close() []byte {
	a.add("TRAILER!!!", 0, nil)
	return a.Bytes()
}

// Package cockpit_test looks at the page of Cockpit in a real browser: with documents of golden files
// for the situations that a host is rarely in, and on a whole Debian with Cockpit and the daemon.
package cockpit_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"multihomed/test/machine"
)

// The checks of accessibility, pinned by version and digest.
const (
	axeVersion = "axe-core@4.11.0"
	axeDigest  = "ilYanEU8vxxBexpJd8cWM4ElSQq4QctCLKih0TSfjIfCQTeyH/6zVrmIJfLPrKTKJRbiG+cfnZbQIjAlJmF1jQ=="
)

// axe is the file that has them.
var axe string

func TestMain(m *testing.M) {
	if err := prepare(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(machine.Main(m.Run, release()))
}

// release is the Debian whose Cockpit is used, with it.
func release() string {
	return machine.With(cmp.Or(os.Getenv("MULTIHOMED_TEST_RELEASE"), machine.Trixie), "cockpit-ws", "cockpit-bridge", "cockpit-system", "sudo")
}

// prepare fetches what needs the host's network, once.
func prepare(ctx context.Context) error {
	if _, err := exec.LookPath("chromium"); err != nil {
		return errors.New("chromium is not found: test/lab/install-requirements chromium")
	}
	dir, err := machine.Cached(ctx, axeVersion, func(dir string) error { return fetchAxe(ctx, dir) })
	if err != nil {
		return err
	}
	axe = filepath.Join(dir, "axe.min.js")
	return nil
}

// fetchAxe gets the package by npm, and takes the one file that is needed.
func fetchAxe(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "npm", "pack", "--silent", "--pack-destination", dir, axeVersion)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("npm pack %s: %w: %s (npm of Debian: test/lab/install-requirements npm)", axeVersion, err, out)
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.tgz"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("npm left %v (%w)", found, err)
	}
	data, err := os.ReadFile(found[0])
	if err != nil {
		return err
	}
	if sum := sha512.Sum512(data); base64.StdEncoding.EncodeToString(sum[:]) != axeDigest {
		return fmt.Errorf("%s is another package than the one that was pinned", axeVersion)
	}
	unzipped, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return err
	}
	for archive := tar.NewReader(unzipped); ; {
		header, err := archive.Next()
		if err != nil {
			return fmt.Errorf("reading %s: %w", axeVersion, err)
		}
		if header.Name != "package/axe.min.js" {
			continue
		}
		script, err := io.ReadAll(io.LimitReader(archive, 4<<20))
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "axe.min.js"), script, 0o644)
	}
}

package machine

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"multihomed/test/lab"
)

// install is run with the directory of a root, an empty directory, and names of packages. What it
// writes over the root is then in upper below that directory. The host resolves names meanwhile.
const install = `
root=$1 at=$2; shift 2
mkdir "$at/upper" "$at/work" "$at/root"
mount -t overlay overlay "$at/root" -o "lowerdir=$root,upperdir=$at/upper,workdir=$at/work"
cp -L /etc/resolv.conf "$at/root/etc/resolv.conf"
chroot "$at/root" sh -ec 'apt-get update -q; apt-get install -y -q --no-install-recommends "$@"; apt-get clean; rm -rf /var/lib/apt/lists/*_*' sh "$@"
rm "$at/root/etc/resolv.conf"
umount "$at/root"
rm -r "$at/root" "$at/work"`

// Layer returns a directory with what packages of Debian add to a root, for Config.Layer. Like a
// root it is made on the first call, which needs the host's network, and kept: call it in TestMain,
// before Main.
func Layer(ctx context.Context, release string, packages ...string) (string, error) {
	root, err := Root(ctx, release)
	if err != nil {
		return "", err
	}
	recipe := sha256.Sum256([]byte(filepath.Base(root) + install + strings.Join(packages, " ")))
	dir, err := Cached(ctx, fmt.Sprintf("layer-%s-%x", release, recipe[:4]), func(tmp string) error {
		if lab.Inside() {
			return fmt.Errorf("a lab has no network to install %s from: call machine.Layer before machine.Main", strings.Join(packages, " "))
		}
		fmt.Fprintf(os.Stderr, "machine: installing %s over %s\n", strings.Join(packages, " "), release)
		env, err := proxies(ctx, append(hostEnv(), "DEBIAN_FRONTEND=noninteractive"))
		if err != nil {
			return err
		}
		out, err := isolated(ctx, env, "sh", append([]string{"-ec", install, "sh", root, tmp}, packages...)...)
		if err != nil {
			return fmt.Errorf("%w: %s", err, lab.Tail(out, 20))
		}
		return nil
	})
	return filepath.Join(dir, "upper"), err
}

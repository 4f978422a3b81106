//go:build containers

package e2e_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/test/lab"
)

// An engine runs containers of the image with the one program of testdata/container.
type engine struct {
	*publishing
	// version is the engine's own word.
	version string
	// run starts a container in the background, with options before the image, and ask asks out of one.
	run func(name string, options ...string)
	// bind starts the container "app" in a network that is bound to wan1.
	bind func()
	// rebuild makes the network and its bridge anew.
	rebuild func()
	ask     func(name, network, address string) (string, error)
}

// TestContainerEngines: what docs/one-operator.md says, with the real Docker and Podman.
func TestContainerEngines(t *testing.T) {
	for _, tt := range []struct {
		name, bind string
		start      func(*publishing) *engine
	}{
		{"docker", `interface = "br-w1"`, docker},
		{"podman", `source = "10.89.8.0/24"`, podman},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newProviders(t, forwards(), "[[bind]]\nlink = \"wan1\"\n"+tt.bind+"\n")
			p.up("wan0", "wan1")
			for _, link := range []string{"wan0", "wan1"} {
				_, err := p.WaitAddr(t.Context(), link, lab.IPv6)
				p.must(err)
			}
			p.cgroups()
			e := tt.start(p)
			t.Logf("%s %s", tt.name, e.version)
			p.start()
			e.published()
			e.bound()
		})
	}
}

// published: ports are answered on the provider that was asked.
func (e *engine) published() {
	e.t.Helper()
	e.run("web", "-p", fmt.Sprintf("%[1]d:%[1]d", lab.EchoPort), "-p", fmt.Sprintf("%[1]d:%[1]d/udp", lab.EchoPort))
	e.marks(lab.IPv4, 2)
	e.marks(lab.IPv6, 2)
	for _, isp := range e.isps {
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			e.eventually(func() error { return e.askedAt(isp, f, "published") })
		}
	}
	e.afresh()
	e.asked("published", lab.IPv4, lab.IPv6)
	e.strays("published")
}

// bound: a network leaves by its link, and nowhere while the link is down.
func (e *engine) bound() {
	e.t.Helper()
	e.bind()
	from := func(want string) {
		e.t.Helper()
		for _, network := range []string{"tcp", "udp"} {
			e.eventually(func() error {
				out, err := e.ask("app", network, lab.InternetAddr4.String())
				if answered := want != ""; answered != (err == nil) || !strings.Contains(out, want) {
					return fmt.Errorf("%s is answered by %q, want %q: %w", network, out, want, err)
				}
				return nil
			})
		}
	}
	from("isp1")
	e.afresh()
	e.must(e.Down(e.t.Context(), "wan1"))
	from("")
	packets, err := e.captures[0].Matching(func(k lab.Packet) bool { return k.DstPort == lab.EchoPort })
	e.must(err)
	if len(packets) > 0 {
		e.t.Errorf("without its link, what is bound leaves by the other one:\n%s", lab.FormatPackets(packets))
	}
	e.up("wan1")
	from("isp1")
	if e.rebuild != nil {
		e.rebuild()
		from("isp1")
	}
	packets, err = e.captures[0].Matching(func(k lab.Packet) bool { return k.DstPort == lab.EchoPort })
	e.must(err)
	if len(packets) > 0 {
		e.t.Errorf("what is bound left by the other link:\n%s", lab.FormatPackets(packets))
	}
}

// cgroups gives the lab's host the hierarchy that engines need.
func (p *publishing) cgroups() {
	p.t.Helper()
	p.must(unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""))
	p.t.Cleanup(func() { _ = unix.Unmount("/sys/fs/cgroup", unix.MNT_DETACH) })
}

// program builds the program of the containers.
func (p *publishing) program(dir string) string {
	p.t.Helper()
	path := filepath.Join(dir, "container")
	cmd := exec.CommandContext(p.t.Context(), "go", "build", "-buildvcs=false", "-o", path, "multihomed/test/e2e/testdata/container")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		p.t.Fatalf("%v: %s", err, out)
	}
	return path
}

// composeFile is that of docs/one-operator.md, with another image.
const composeFile = `version: "3"
services:
  app:
    container_name: app
    image: container
    command: /container
networks:
  default:
    driver_opts:
      com.docker.network.bridge.name: br-w1
`

// docker starts the real dockerd with everything of its own in a directory.
func docker(p *publishing) *engine {
	p.t.Helper()
	dir := p.t.TempDir()
	socket := "unix://" + dir + "/socket"
	call := func(args ...string) (string, error) {
		ctx, cancel := p.patience()
		defer cancel()
		out, err := p.Run(ctx, "docker", append([]string{"-H", socket}, args...)...)
		return strings.TrimSpace(out), err
	}
	daemon, err := p.Start(lab.ProcessConfig{Path: "dockerd", Args: []string{
		"--data-root", dir + "/root", "--exec-root", dir + "/exec", "--pidfile", dir + "/pid", "-H", socket,
		"--storage-driver", "vfs", "--exec-opt", "native.cgroupdriver=cgroupfs",
		"--experimental", "--ip6tables", "--ipv6", "--fixed-cidr-v6", "fd17::/64",
	}})
	p.must(err)
	p.t.Cleanup(func() {
		if err := daemon.Stop(context.WithoutCancel(p.t.Context())); err != nil {
			p.t.Error(err)
		}
		// It mounts its directory on itself, and may leave that.
		_ = unix.Unmount(dir+"/root", unix.MNT_DETACH)
	})
	e := &engine{publishing: p}
	p.eventually(func() (err error) {
		e.version, err = call("version", "--format", "{{.Server.Version}}")
		return err
	})
	image := filepath.Join(dir, "image.tar")
	p.must(archive(p.program(dir), image))
	_, err = call("import", image, "container")
	p.must(err)
	file := filepath.Join(dir, "compose.yaml")
	p.must(os.WriteFile(file, []byte(composeFile), 0o600))
	compose := func(args ...string) {
		p.t.Helper()
		ctx, cancel := p.patience()
		defer cancel()
		_, err := p.Run(ctx, "env", append([]string{"DOCKER_HOST=" + socket, "docker-compose", "-f", file, "-p", "office"}, args...)...)
		p.must(err)
	}
	e.rebuild = func() {
		compose("down", "-t", "0")
		compose("up", "-d")
	}
	e.bind = func() {
		compose("up", "-d")
		p.t.Cleanup(func() { _, _ = exec.Command("docker", "-H", socket, "rm", "-f", "app").CombinedOutput() }) //nolint:noctx // after the test
	}
	e.run = func(name string, options ...string) {
		p.t.Helper()
		_, err := call(append(append([]string{"run", "-d", "--name", name}, options...), "container", "/container")...)
		p.must(err)
		// The daemon's own end leaves containers.
		p.t.Cleanup(func() { _, _ = exec.Command("docker", "-H", socket, "rm", "-f", name).CombinedOutput() }) //nolint:noctx // after the test
	}
	e.ask = func(name, network, address string) (string, error) {
		return call("exec", name, "/container", "ask", network, address)
	}
	return e
}

// archive is an image with one program.
func archive(program, path string) error {
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := tar.NewWriter(f)
	return errors.Join(
		w.WriteHeader(&tar.Header{Name: "container", Mode: 0o755, Size: int64(len(data))}),
		func() error { _, err := w.Write(data); return err }(),
		w.Close(), f.Close(),
	)
}

// podman runs containers of a root directory on netavark.
func podman(p *publishing) *engine {
	p.t.Helper()
	dir := p.t.TempDir()
	p.must(os.MkdirAll(dir+"/rootfs", 0o755))
	p.must(os.Rename(p.program(dir), dir+"/rootfs/container"))
	p.must(os.WriteFile(dir+"/containers.conf", []byte("[network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \""+dir+"/networks\"\n[engine]\ncgroup_manager = \"cgroupfs\"\nruntime = \"crun\"\n"), 0o600))
	call := func(args ...string) (string, error) {
		ctx, cancel := p.patience()
		defer cancel()
		out, err := p.Run(ctx, "env", append([]string{"CONTAINERS_CONF=" + dir + "/containers.conf", "podman", "--root", dir + "/root", "--runroot", dir + "/run", "--storage-driver", "vfs"}, args...)...)
		return strings.TrimSpace(out), err
	}
	// It mounts the directory of namespaces on itself, over those of the lab.
	p.t.Cleanup(func() { p.must(unix.Unmount("/run/netns", unix.MNT_DETACH)) })
	e := &engine{publishing: p}
	var err error
	e.version, err = call("version", "--format", "{{.Client.Version}}")
	p.must(err)
	_, err = call("network", "create", "--ipv6", "--subnet", "10.89.7.0/24", "--subnet", "fd89:7::/64", "web")
	p.must(err)
	_, err = call("network", "create", "--subnet", "10.89.8.0/24", "w1")
	p.must(err)
	e.run = func(name string, options ...string) {
		p.t.Helper()
		if name == "web" {
			options = append(options, "--network", "web")
		}
		p.t.Cleanup(func() {
			cmd := exec.Command("podman", "--root", dir+"/root", "--runroot", dir+"/run", "--storage-driver", "vfs", "rm", "-f", "-t", "0", name) //nolint:noctx // after the test
			cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+dir+"/containers.conf")
			if out, err := cmd.CombinedOutput(); err != nil {
				p.t.Errorf("removing %s: %v: %s", name, err, out)
			}
		})
		_, err := call(append(append([]string{"run", "-d", "--cgroups=disabled", "--name", name}, options...), "--rootfs", dir+"/rootfs", "/container")...)
		p.must(err)
	}
	e.bind = func() { e.run("app", "--network", "w1") }
	e.ask = func(name, network, address string) (string, error) {
		return call("exec", name, "/container", "ask", network, address)
	}
	return e
}

# multihomed: `make help` lists the targets.

# sudo resets PATH, and Go is often installed outside of the default one.
GO      ?= $(or $(shell command -v go 2>/dev/null),$(wildcard /usr/local/go/bin/go),$(wildcard /usr/lib/go/bin/go),go)
# Tests build the programs they run.
export PATH := $(patsubst %/,%,$(dir $(GO))):$(PATH)
# The package's changelog has the version; the part after the dash is the Debian revision.
VERSION ?= $(shell head -n 1 packaging/debian/changelog | tr '()-' '   ' | cut -d ' ' -f 3)
BIN     := bin
DIST    := dist
# No VCS stamp: root building a user's checkout must not make git refuse.
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -funcalign=16 -X main.version=$(VERSION)' $(BUILD_FLAGS)
# One program; the other names are symbolic links to it (cmd/multihomed).
MAIN    := ./cmd/multihomed
NAMES   := multihomectl multihomed-binder multihomed-dispatcher multihomed-prober
LINT    := .cache/golangci-lint
LINT_VERSION := v2.15.0

.DEFAULT_GOAL := help
.PHONY: help demo test test-of-e2e test-of-the-rest soak build extras unit lint bench install install-cockpit uninstall deb rpm release repository clean requirements FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: requirements build ## show the main features in a private lab (as root)
	$(BIN)/demo

test: requirements build ## all tests: unit, property and real-NetworkManager (as root)
	@test/lab/install-requirements gcc libc6-dev debhelper dh-apparmor apparmor appstream sosreport reportbug bash-completion zsh fish lintian rpm systemd-container debootstrap \
		qemu-system-x86 kmod xz-utils e2fsprogs debian-archive-keyring wireguard-tools \
		nftables keepalived bird2 charon-systemd strongswan-swanctl libstrongswan libcharon-extra-plugins \
		firewalld ufw iptables prometheus python3-prometheus-client apt-utils gpg gpg-agent ansible-lint \
		polkitd libglib2.0-bin python3-dbus chromium
	@command -v npm >/dev/null || test/lab/install-requirements npm
	$(GO) vet -tags debiankernel,containers ./...
	# Two at a time, for two cores: the tests of e2e wait more than they work.
	$(MAKE) --no-print-directory -j 2 test-of-e2e test-of-the-rest

test-of-e2e:
	$(GO) test -race -timeout 40m ./test/e2e
	MULTIHOMED_TEST_RELEASE=trixie $(GO) test -timeout 10m ./test/nm
	MULTIHOMED_TEST_RELEASE=trixie $(GO) test -timeout 10m -run '$(subst $(space),|,$(strip $(OF_NM)))' ./test/e2e
	$(GO) test -p 1 -timeout 25m ./test/cockpit ./test/vm

# What is not raced starts whole hosts and virtual machines. Each target has some of it, so that both end at the same time.
test-of-the-rest:
	$(GO) test -race -p 1 -timeout 40m $$($(GO) list ./... | grep -v '^multihomed/test/\(cgroups\|cockpit\|e2e\|hosts\|vm\)')
	$(GO) test -p 2 -timeout 25m ./test/hosts/... ./test/cgroups

# Tests that depend on NetworkManager's version run again with that of Debian 13.
OF_NM := TestTwoProviders TestActivations TestDHCPRoutes TestProfilesConverge TestProvidersConverge TestCablesConverge \
	TestMainIsNotOurs TestBoundTrafficNeverStrays TestNetworkManagerAway TestStartBeforeEverything TestNeverDefault TestNames$$ \
	TestFailoverChoice TestFailoverConnections TestFailoverByCarrier
space := $(subst ,, )

soak: requirements ## hours of tests: every host on Debian's kernels, failover on bad lines, long property tests (as root)
	@test/lab/install-requirements qemu-system-x86 kmod xz-utils debian-archive-keyring wireguard-tools \
		nftables keepalived bird2 charon-systemd strongswan-swanctl libstrongswan libcharon-extra-plugins \
		docker.io docker-compose podman netavark aardvark-dns crun
	$(GO) test -timeout 8h ./routing -rapid.checks=20000 -rapid.seed=0
	$(GO) test -timeout 6h -v ./test/hosts/debian -soak
	$(GO) test -timeout 2h -v -run TestFailover ./test/e2e -soak
	$(GO) test -timeout 10m -v -tags containers -run TestContainerEngines ./test/e2e

requirements:
	@test/lab/install-requirements

build: ## build the program and its names into bin/
	$(BUILD) -o $(BIN)/ $(MAIN) ./test/demo
	for n in $(NAMES); do ln -sf multihomed $(BIN)/$$n; done

unit: ## tests that need neither root nor NetworkManager
	$(GO) test ./routing ./routing/kerneltest ./routing/lookup ./internal/config ./internal/rttables

lint: $(LINT) ## run golangci-lint, as in CI
	$(LINT) run ./...

$(LINT):
	GOBIN=$(CURDIR)/.cache GOTOOLCHAIN=local $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)

bench: requirements build ## measure the tables of docs/figures.md (as root)
	$(BUILD) -o $(BIN)/ ./test/bench
	$(BIN)/bench -v

# Files that the programs and their modules provide.
ROLE     := $(patsubst packaging/%,%,$(shell find packaging/ansible/roles -type f))
MANUALS  := $(wildcard packaging/man/*.[58])
extras: ## write completions and licences into bin/ (after make build)
	mkdir -p $(BIN)/completions
	$(BIN)/multihomectl completion bash >$(BIN)/completions/multihomectl
	$(BIN)/multihomectl completion zsh >$(BIN)/completions/_multihomectl
	$(BIN)/multihomectl completion fish >$(BIN)/completions/multihomectl.fish
	$(BIN)/multihomectl config --reference >$(BIN)/multihomed.toml
	@command -v $(GO) >/dev/null || { echo "$(GO) is not found, but is needed for the licences: install Go, or set GO=/path/to/go" >&2; exit 1; }
	packaging/notices $(GO) $(MAIN) >$(BIN)/NOTICES.new
	mv $(BIN)/NOTICES.new $(BIN)/NOTICES

# Other programs expect these directories, whatever PREFIX is.
PREFIX     ?= /usr/local
sbindir    ?= $(PREFIX)/sbin
bindir     ?= $(PREFIX)/bin
datadir    ?= $(PREFIX)/share
mandir     ?= $(datadir)/man
docdir     ?= $(datadir)/doc/multihomed
sysconfdir ?= /etc
LIB        ?= /usr/lib
unitdir    ?= $(LIB)/systemd/system
NM_LIB     ?= $(LIB)/NetworkManager
ANSIBLE    ?= /usr/share/ansible
DHCPCD     ?= $(LIB)/dhcpcd/dhcpcd-hooks
DBUS       ?= /usr/share/dbus-1/system.d
COCKPIT    ?= /usr/share/cockpit
METAINFO   ?= /usr/share/metainfo
POLKIT     ?= /usr/share/polkit-1/actions
IFUPDOWN   ?= $(sysconfdir)/network
DHCLIENT   ?= $(sysconfdir)/dhcp/dhclient-exit-hooks.d
IPROUTE2   ?= $(sysconfdir)/iproute2
APPARMOR   ?= /etc/apparmor.d
# Debian's zsh reads completions of packages from vendor-completions; site-functions is for zsh and the administrator.
zshdir     ?= $(datadir)/zsh/$(if $(filter /usr,$(PREFIX)),vendor-completions,site-functions)

# NetworkManager runs a script only if root owns it and nobody else may write to it. The
# link in no-wait.d makes its dispatcher run it at once (NetworkManager-dispatcher(8)).
OWNED  := $(if $(filter 0,$(shell id -u)),-o root -g root)
SCRIPT := install -D $(OWNED) -m 755
DATA   := install -D $(OWNED) -m 644
FILL    = sed 's,@sbindir@,$(sbindir),g; s,@bindir@,$(bindir),g'
D       = $(DESTDIR)
install: ## install everything but the user into $(DESTDIR) and $(PREFIX) (after make build)
	@test -x $(BIN)/multihomed || { echo "$(BIN)/multihomed is missing: run make build first" >&2; exit 1; }
	@test -f $(BIN)/NOTICES || { command -v $(GO) >/dev/null || { echo "$(BIN)/NOTICES is missing, and $(GO) is not found to make it: install Go, or set GO=/path/to/go" >&2; exit 1; }; $(MAKE) extras; }
	$(SCRIPT) $(BIN)/multihomed $D$(sbindir)/multihomed
	ln -sf multihomed $D$(sbindir)/multihomed-dispatcher
	ln -sf multihomed $D$(sbindir)/multihomed-prober
	ln -sf multihomed $D$(sbindir)/multihomed-binder
	install -d $(OWNED) -m 755 $D$(bindir)
	ln -sfr $D$(sbindir)/multihomed $D$(bindir)/multihomectl
	install -d $(OWNED) -m 755 $D$(NM_LIB)/dispatcher.d/no-wait.d
	# Not ln -r: it would resolve the dispatcher, which is a link itself.
	ln -sf "$$(realpath -ms --relative-to=$D$(NM_LIB)/dispatcher.d/no-wait.d $D$(sbindir)/multihomed-dispatcher)" \
		$D$(NM_LIB)/dispatcher.d/no-wait.d/90-multihomed
	ln -sf no-wait.d/90-multihomed $D$(NM_LIB)/dispatcher.d/90-multihomed
	$(FILL) packaging/hooks/ifupdown.in | $(SCRIPT) /dev/stdin $D$(IFUPDOWN)/if-up.d/multihomed
	$(FILL) packaging/hooks/ifupdown.in | $(SCRIPT) /dev/stdin $D$(IFUPDOWN)/if-post-down.d/multihomed
	$(FILL) packaging/hooks/dhclient.in | $(DATA) /dev/stdin $D$(DHCLIENT)/multihomed
	$(FILL) packaging/hooks/dhcpcd.in | $(DATA) /dev/stdin $D$(DHCPCD)/90-multihomed
	$(FILL) packaging/udev/90-multihomed.rules.in | $(DATA) /dev/stdin $D$(LIB)/udev/rules.d/90-multihomed.rules
	$(FILL) packaging/systemd/multihomed.service.in | $(DATA) /dev/stdin $D$(unitdir)/multihomed.service
	$(FILL) packaging/systemd/multihomed-failed.service.in | $(DATA) /dev/stdin $D$(unitdir)/multihomed-failed.service
	$(FILL) packaging/systemd/multihomed-prober.service.in | $(DATA) /dev/stdin $D$(unitdir)/multihomed-prober.service
	$(FILL) packaging/systemd/multihomed-binder.service.in | $(DATA) /dev/stdin $D$(unitdir)/multihomed-binder.service
	$(DATA) packaging/systemd/multihomed.socket $D$(unitdir)/multihomed.socket
	$(DATA) packaging/systemd/multihomed-prober.socket $D$(unitdir)/multihomed-prober.socket
	$(DATA) packaging/systemd/multihomed-binder.socket $D$(unitdir)/multihomed-binder.socket
	$(FILL) packaging/systemd/multihomed-metrics.service.in | $(DATA) /dev/stdin $D$(unitdir)/multihomed-metrics.service
	$(DATA) packaging/systemd/multihomed-metrics.socket $D$(unitdir)/multihomed-metrics.socket
	$(DATA) packaging/prometheus/multihomed.rules.yml $D$(datadir)/multihomed/prometheus/multihomed.rules.yml
	$(DATA) packaging/grafana/multihomed.json $D$(datadir)/multihomed/grafana/multihomed.json
	$(DATA) packaging/catalog/multihomed.catalog $D$(LIB)/systemd/catalog/multihomed.catalog
	$(DATA) packaging/sysusers.d/multihomed.conf $D$(LIB)/sysusers.d/multihomed.conf
	$(DATA) packaging/tmpfiles.d/multihomed.conf $D$(LIB)/tmpfiles.d/multihomed.conf
	$(DATA) packaging/dbus/multihomed.conf $D$(DBUS)/multihomed.conf
	$(DATA) packaging/polkit/org.multihomed1.policy $D$(POLKIT)/org.multihomed1.policy
	$(DATA) packaging/apparmor/usr.sbin.multihomed $D$(APPARMOR)/usr.sbin.multihomed
	$(DATA) packaging/sos/multihomed.py $D$(datadir)/multihomed/sos/multihomed.py
	sed 's,@version@,$(VERSION),; s,@date@,$(shell date -u -d @$(EPOCH) +%F),' packaging/metainfo/org.multihomed.multihomed.metainfo.xml.in | \
		$(DATA) /dev/stdin $D$(METAINFO)/org.multihomed.multihomed.metainfo.xml
	$(DATA) packaging/iproute2/rt_protos.conf $D$(IPROUTE2)/rt_protos.d/multihomed.conf
	# Where Ansible looks for roles.
	for f in $(ROLE); do $(DATA) packaging/$$f $D$(ANSIBLE)/$${f#ansible/} || exit 1; done
	# The daemon writes the names, because they come from links; until then iproute2 shows numbers.
	install -d $(OWNED) -m 755 $D$(IPROUTE2)/rt_tables.d
	ln -sf /run/multihomed/rt_tables.conf $D$(IPROUTE2)/rt_tables.d/multihomed.conf
	# Empty, so that whoever writes a configuration need not make it.
	install -d $(OWNED) -m 755 $D$(sysconfdir)/multihomed
	$(DATA) -t $D$(datadir)/multihomed/schema $(wildcard docs/schema/*.schema.json)
	$(DATA) $(BIN)/completions/multihomectl $D$(datadir)/bash-completion/completions/multihomectl
	$(DATA) $(BIN)/completions/_multihomectl $D$(zshdir)/_multihomectl
	$(DATA) $(BIN)/completions/multihomectl.fish $D$(datadir)/fish/vendor_completions.d/multihomectl.fish
	$(DATA) -t $D$(mandir)/man5 $(filter %.5,$(MANUALS))
	$(DATA) -t $D$(mandir)/man8 $(filter %.8,$(MANUALS))
	$(DATA) -t $D$(docdir) README.md CONTRIBUTING.md ARCHITECTURE.md $(BIN)/NOTICES
	$(DATA) -t $D$(docdir)/docs $(wildcard docs/*.md docs/*.svg docs/*.png)
	$(DATA) $(BIN)/multihomed.toml $D$(docdir)/examples/multihomed.toml

# A target of its own: a host without Cockpit needs no page, and the packages have it apart.
install-cockpit: ## install the page of Cockpit into $(DESTDIR) (it needs no build)
	$(DATA) -t $D$(COCKPIT)/multihomed $(filter-out %.xml,$(wildcard packaging/cockpit/*))
	$(DATA) -t $D$(METAINFO) packaging/cockpit/org.multihomed.cockpit.metainfo.xml

uninstall: ## remove what make install installed, and the routing; configuration and leases stay
	@$(if $D,:,$(LEAVE))
	rm -f $(addprefix $D$(sbindir)/,multihomed multihomed-dispatcher multihomed-prober multihomed-binder) $D$(bindir)/multihomectl \
		$D$(NM_LIB)/dispatcher.d/90-multihomed $D$(NM_LIB)/dispatcher.d/no-wait.d/90-multihomed \
		$D$(IFUPDOWN)/if-up.d/multihomed $D$(IFUPDOWN)/if-post-down.d/multihomed \
		$D$(DHCLIENT)/multihomed $D$(DHCPCD)/90-multihomed $D$(LIB)/udev/rules.d/90-multihomed.rules \
		$D$(unitdir)/multihomed.service $D$(unitdir)/multihomed-failed.service $D$(unitdir)/multihomed.socket \
		$D$(unitdir)/multihomed-prober.service $D$(unitdir)/multihomed-prober.socket \
		$D$(unitdir)/multihomed-binder.service $D$(unitdir)/multihomed-binder.socket \
		$D$(unitdir)/multihomed-metrics.service $D$(unitdir)/multihomed-metrics.socket \
		$D$(LIB)/systemd/catalog/multihomed.catalog $D$(LIB)/sysusers.d/multihomed.conf $D$(LIB)/tmpfiles.d/multihomed.conf $D$(DBUS)/multihomed.conf $D$(POLKIT)/org.multihomed1.policy \
		$D$(APPARMOR)/usr.sbin.multihomed $D$(METAINFO)/org.multihomed.multihomed.metainfo.xml $D$(IPROUTE2)/rt_protos.d/multihomed.conf $D$(IPROUTE2)/rt_tables.d/multihomed.conf \
		$D$(datadir)/bash-completion/completions/multihomectl $D$(zshdir)/_multihomectl \
		$D$(datadir)/fish/vendor_completions.d/multihomectl.fish $D$(METAINFO)/org.multihomed.cockpit.metainfo.xml \
		$(foreach m,$(notdir $(MANUALS)),$D$(mandir)/man$(subst .,,$(suffix $m))/$m)
	rm -rf $D$(docdir) $D$(datadir)/multihomed $D$(ANSIBLE)/roles/multihomed $D$(COCKPIT)/multihomed
	test ! -d $D$(sysconfdir)/multihomed || rmdir --ignore-fail-on-non-empty $D$(sysconfdir)/multihomed
	@$(if $D,:,test ! -d /run/systemd/system || systemctl daemon-reload)
	@$(if $D,:,echo "left in place, remove it by hand: $(sysconfdir)/multihomed /var/lib/multihomed and the user multihomed")

# As in the package (multihomed.prerm): the tool stays until the routing is removed.
LEAVE = set -e; ctl=$(bindir)/multihomectl; \
	test "$$(id -u)" -eq 0 || { echo "nothing was removed: only root can stop the service and remove its routing; run: sudo make uninstall" >&2; exit 1; }; \
	test ! -d /run/systemd/system || ! systemctl cat multihomed.service >/dev/null 2>&1 || { systemctl disable --now multihomed.service multihomed.socket; systemctl stop multihomed-prober.socket multihomed-prober.service multihomed-binder.socket multihomed-binder.service; systemctl disable --now multihomed-metrics.socket || true; }; \
	test ! -x $$ctl || ! test / -ef /proc/1/root || { rm -f $(sbindir)/multihomed-dispatcher; $$ctl flush --yes; } || \
		{ ln -sf multihomed $(sbindir)/multihomed-dispatcher; echo "nothing was removed, because the routing is still in the kernel, for the reason above; when that is fixed: sudo make uninstall" >&2; exit 1; }

# Committed and changed files without build results, so that equal input makes an equal
# package.
$(DIST)/source: FORCE
	rm -rf $@
	mkdir -p $@
	git -c safe.directory="*" ls-files -z --cached --others --exclude-standard | xargs -0 cp -a --parents -t $@

deb: ## build the Debian package into dist/
	@(for p in dh dh_apparmor dpkg-buildpackage git; do command -v $$p || exit 1; done) >/dev/null || { echo "make deb needs more; run: sudo apt install debhelper dh-apparmor git" >&2; exit 1; }
	$(MAKE) $(DIST)/source
	XZ_OPT=-T1 tar -C $(DIST) $(SAME) --transform 's,^source,multihomed-$(VERSION),' -cJf $(DIST)/multihomed_$(VERSION).orig.tar.xz source
	cp -a packaging/debian $(DIST)/source/debian
	# -d, because the installed Go need not be a package of Debian.
	cd $(DIST)/source && dpkg-buildpackage -d -us -uc
	rm -rf $(DIST)/source

rpm: ## build the package for Fedora and RHEL into dist/
	@(for p in rpmbuild git; do command -v $$p || exit 1; done) >/dev/null || { echo "make rpm needs more; run: sudo apt install rpm git, or: sudo dnf install rpm-build git" >&2; exit 1; }
	$(MAKE) $(DIST)/source
	rm -rf $(DIST)/rpm && mkdir -p $(DIST)/rpm/SOURCES
	tar -C $(DIST)/source $(SAME) -cf $(DIST)/rpm/SOURCES/multihomed.tar .
	SOURCE_DATE_EPOCH=$(EPOCH) rpmbuild -bb --define '_topdir $(abspath $(DIST))/rpm' --define 'package_version $(VERSION)' \
		--define 'use_source_date_epoch_as_buildtime 1' --define 'clamp_mtime_to_source_date_epoch 1' --define '_buildhost reproducible' \
		packaging/rpm/multihomed.spec
	mv $(DIST)/rpm/RPMS/*/*.rpm $(DIST)/
	rm -rf $(DIST)/rpm $(DIST)/source

# The date of the last entry in the package's changelog, as for the Debian package.
EPOCH = $(shell date -d "$$(sed -n 's/^ -- .*>  //p' packaging/debian/changelog | head -n 1)" +%s)

# Equal files make an equal archive, whoever owns them here.
SAME = --sort=name --owner=0 --group=0 --numeric-owner --mode=a+rX,u+w,go-w --mtime=@$(EPOCH)

release: ## build .deb, .rpm, SBOM and checksums into dist/, reproducibly
	rm -rf $(DIST) && mkdir -p $(DIST)
	$(MAKE) deb rpm DIST=$(abspath $(DIST))/build
	mv $(DIST)/build/*.deb $(DIST)/build/*.rpm $(DIST)/
	dpkg-deb --fsys-tarfile $(DIST)/multihomed_*.deb | tar -xO ./usr/sbin/multihomed >$(DIST)/build/multihomed
	SOURCE_DATE_EPOCH=$(EPOCH) GO=$(GO) $(GO) run -trimpath ./packaging/sbom $(DIST)/build/multihomed multihomed $(VERSION) >$(DIST)/multihomed_$(VERSION).cdx.json
	rm -rf $(DIST)/build
	cd $(DIST) && sums=$$(sha256sum -- *) && echo "$$sums" >SHA256SUMS

repository: ## make a signed apt repository of dist/ in dist/apt: GPG_KEY=FINGERPRINT APT_URL=https://…
	@SOURCE_DATE_EPOCH=$(EPOCH) packaging/apt-repository $(DIST) '$(GPG_KEY)' '$(APT_URL)'

clean: ## remove what was built
	rm -rf $(BIN) $(DIST)

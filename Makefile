# multihomed: make help says what there is.

# sudo resets PATH, and Go is often installed outside of it.
GO      ?= $(or $(shell command -v go 2>/dev/null),$(wildcard /usr/local/go/bin/go),$(wildcard /usr/lib/go/bin/go),go)
# Tests build the programs they run.
export PATH := $(patsubst %/,%,$(dir $(GO))):$(PATH)
VERSION ?= 0.1.0~dev
BIN     := bin
# No VCS stamp: root building a user's checkout must not make git refuse.
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'
# Where the callers of multihomed-dispatcher look, whatever PREFIX is.
PREFIX     ?= /usr/local
sbindir    ?= $(PREFIX)/sbin
bindir     ?= $(PREFIX)/bin
NM_LIB     ?= /usr/lib/NetworkManager
IFUPDOWN   ?= /etc/network
DHCLIENT   ?= /etc/dhcp/dhclient-exit-hooks.d
DHCPCD     ?= /usr/lib/dhcpcd/dhcpcd-hooks
UDEV_RULES ?= /usr/lib/udev/rules.d
LINT    := .cache/golangci-lint
LINT_VERSION := v2.15.0

.DEFAULT_GOAL := help
.PHONY: help demo test build unit lint bench install uninstall clean requirements

help: ## what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: requirements build ## show the main job in a private lab (as root)
	$(BIN)/demo

test: requirements build ## everything: unit, property and real-NetworkManager tests (as root)
	@command -v gcc >/dev/null || internal/lab/install-requirements gcc libc6-dev
	$(GO) vet ./...
	$(GO) test -race -timeout 20m ./...

requirements:
	@internal/lab/install-requirements

build: ## the programs, into bin/
	$(BUILD) -o $(BIN)/ ./cmd/multihomed ./cmd/multihomectl ./cmd/multihomed-dispatcher ./internal/demo

unit: ## only what needs neither root nor NetworkManager
	$(GO) test ./routing ./routing/kerneltest ./cmd/internal/config ./cmd/internal/rttables

lint: $(LINT) ## golangci-lint, as in CI
	$(LINT) run ./...

$(LINT):
	GOBIN=$(CURDIR)/.cache GOTOOLCHAIN=local $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)

bench: requirements build ## the table of figures in the README (as root)
	$(BUILD) -o $(BIN)/ ./internal/bench
	$(BIN)/bench -v

# Root owns what NetworkManager runs, and nobody else may write to it: it ignores
# it otherwise. The link makes its dispatcher run it at once (NetworkManager-dispatcher(8)).
OWNED   := $(if $(filter 0,$(shell id -u)),-o root -g root)
SCRIPT  := install -D $(OWNED) -m 755
DATA    := install -D $(OWNED) -m 644
FILL     = sed 's,@sbindir@,$(sbindir),g'
install: ## the programs and hooks, into $(DESTDIR) and $(PREFIX) (after make build)
	@test -x $(BIN)/multihomed-dispatcher || { echo "$(BIN)/multihomed-dispatcher is missing: run make build first" >&2; exit 1; }
	$(SCRIPT) $(BIN)/multihomed $(DESTDIR)$(sbindir)/multihomed
	$(SCRIPT) $(BIN)/multihomed-dispatcher $(DESTDIR)$(sbindir)/multihomed-dispatcher
	$(SCRIPT) $(BIN)/multihomectl $(DESTDIR)$(bindir)/multihomectl
	install -d $(OWNED) -m 755 $(DESTDIR)$(NM_LIB)/dispatcher.d/no-wait.d
	ln -sfr $(DESTDIR)$(sbindir)/multihomed-dispatcher $(DESTDIR)$(NM_LIB)/dispatcher.d/no-wait.d/90-multihomed
	ln -sf no-wait.d/90-multihomed $(DESTDIR)$(NM_LIB)/dispatcher.d/90-multihomed
	$(FILL) packaging/hooks/ifupdown.in | $(SCRIPT) /dev/stdin $(DESTDIR)$(IFUPDOWN)/if-up.d/multihomed
	$(FILL) packaging/hooks/ifupdown.in | $(SCRIPT) /dev/stdin $(DESTDIR)$(IFUPDOWN)/if-post-down.d/multihomed
	$(FILL) packaging/hooks/dhclient.in | $(DATA) /dev/stdin $(DESTDIR)$(DHCLIENT)/multihomed
	$(FILL) packaging/hooks/dhcpcd.in | $(DATA) /dev/stdin $(DESTDIR)$(DHCPCD)/90-multihomed
	$(FILL) packaging/udev/90-multihomed.rules.in | $(DATA) /dev/stdin $(DESTDIR)$(UDEV_RULES)/90-multihomed.rules

uninstall: ## what make install installed
	rm -f $(DESTDIR)$(sbindir)/multihomed $(DESTDIR)$(sbindir)/multihomed-dispatcher $(DESTDIR)$(bindir)/multihomectl \
		$(DESTDIR)$(NM_LIB)/dispatcher.d/90-multihomed $(DESTDIR)$(NM_LIB)/dispatcher.d/no-wait.d/90-multihomed \
		$(DESTDIR)$(IFUPDOWN)/if-up.d/multihomed $(DESTDIR)$(IFUPDOWN)/if-post-down.d/multihomed \
		$(DESTDIR)$(DHCLIENT)/multihomed $(DESTDIR)$(DHCPCD)/90-multihomed $(DESTDIR)$(UDEV_RULES)/90-multihomed.rules

clean: ## remove what was built
	rm -rf $(BIN) dist

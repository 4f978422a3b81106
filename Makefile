# multihomed: make help says what there is.

# sudo resets PATH, and Go is often installed outside of it.
GO      ?= $(or $(shell command -v go 2>/dev/null),$(wildcard /usr/local/go/bin/go),$(wildcard /usr/lib/go/bin/go),go)
# Tests build the programs they run.
export PATH := $(patsubst %/,%,$(dir $(GO))):$(PATH)
VERSION ?= 0.1.0~dev
BIN     := bin
# No VCS stamp: root building a user's checkout must not make git refuse.
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'
LINT    := .cache/golangci-lint
LINT_VERSION := v2.15.0

.DEFAULT_GOAL := help
.PHONY: help demo test build unit lint bench clean requirements

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

clean: ## remove what was built
	rm -rf $(BIN) dist

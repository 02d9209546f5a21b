# Two commands do all the set-up on a fresh machine: make demo, make test.
export CGO_ENABLED = 0
GO         ?= go
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME   ?= 30s

.PHONY: build test short race fuzz lint cover demo bench install clean deps

build:
	$(GO) build -trimpath -ldflags=-s -o bin/imgfs ./cmd/imgfs

test: deps build lint
	IMGFS_REQUIRE_FUSE=$$(test -e /dev/fuse -a "$$(id -u)" = 0 && echo 1) $(GO) test -count=1 -timeout 30m ./...

short:
	$(GO) test -short ./...

race: deps
	CGO_ENABLED=1 IMGFS_REQUIRE_FUSE=$$(test -e /dev/fuse -a "$$(id -u)" = 0 && echo 1) $(GO) test -race -short -count=1 -timeout 30m ./...

# Every fuzz target for FUZZTIME, one after another.
fuzz:
	@for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$p || exit 1; \
	  done; done

lint:
	@test -z "$$(gofmt -l . | tee /dev/stderr)"
	$(GO) vet ./...
	$(GO) mod tidy -diff
	$(GO) run $(STATICCHECK) ./...

cover:
	$(GO) test -short -coverprofile=bin/cover.out ./... && $(GO) tool cover -func=bin/cover.out

demo: build
	$(GO) run ./internal/demo -imgfs bin/imgfs -image "$(IMAGE)"

bench: deps build
	$(GO) run ./internal/bench -imgfs bin/imgfs $(BENCH)

# What the tests and the demo need from the system; does nothing where it is there.
deps:
	@./.ci/deps

install: build
	install -D -m 0755 bin/imgfs $(DESTDIR)/usr/local/bin/imgfs
	install -D -m 0644 docs/imgfs.1 $(DESTDIR)/usr/local/share/man/man1/imgfs.1
	install -D -m 0644 -t $(DESTDIR)/usr/local/lib/systemd/system dist/systemd/imgfs.service dist/systemd/imgfs.socket
	install -D -m 0644 dist/systemd/imgfs.sysusers.conf $(DESTDIR)/usr/local/lib/sysusers.d/imgfs.conf

clean:
	rm -rf bin .demo .bench

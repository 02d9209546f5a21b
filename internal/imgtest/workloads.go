package imgtest

// The images that lazy mounts are measured with: a program in each, of which
// little is needed to start.

// DebianPython returns Debian with Python and a small application.
func DebianPython() DebianSpec {
	return DebianSpec{Name: "debian-python", Layers: []DebianLayer{
		apt("python3 python3-requests ca-certificates"),
		{Script: `mkdir -p srv/app; echo 'import json; print("ok")' >srv/app/main.py; rm -rf var/lib/apt/lists`},
	}}
}

// DebianNode returns Debian with Node.js and tens of thousands of small files.
func DebianNode() DebianSpec {
	return DebianSpec{Name: "debian-node", Layers: []DebianLayer{
		apt("nodejs npm ca-certificates"),
		{Script: `
			rm -rf var/lib/apt/lists
			mkdir -p srv/app/node_modules; cd srv/app/node_modules
			for n in $(seq 600); do
				mkdir -p pkg$n/lib pkg$n/test
				for f in $(seq 40); do
					printf '"use strict";\nmodule.exports = function f%s_%s(x) { return x * %s + %s; };\n' $n $f $n $f >pkg$n/lib/f$f.js
				done
				for f in $(seq 20); do printf 'require("../lib/f%s.js")(%s);\n' $f $n >pkg$n/test/t$f.js; done
				printf '{"name":"pkg%s","version":"1.0.%s"}\n' $n $n >pkg$n/package.json
			done`},
	}}
}

// DebianToolchain returns Debian with compilers, more than a gigabyte.
func DebianToolchain() DebianSpec {
	return DebianSpec{Name: "debian-toolchain", Layers: []DebianLayer{
		apt("gcc g++ make libc6-dev"),
		apt("clang llvm"),
		apt("rustc cargo"),
	}}
}

// DebianBase returns Debian's base system alone.
func DebianBase() DebianSpec { return DebianSpec{Name: "debian-only"} }

#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# probe.sh SOURCE OUT KDIR: compiles every compat/*.c against the kernel at KDIR, and writes OUT/compat_probe.h with
# SHIM_HAVE_<NAME> 1 or 0. A probe that compiles means "this kernel has it". compat/base.c must compile: it tells a
# kernel that lacks something from a tree that cannot build modules at all.
set -eu
src=$1 out=$2 kdir=$3
if [ "$src" != "$out" ]; then
	mkdir -p "$out"
	ln -sfn "$src/uapi" "$out/uapi"
	for f in "$src"/*.c "$src"/*.h "$src"/Kbuild; do
		case $f in *.mod.c|*/compat_probe.h) ;; *) ln -sfn "$f" "$out/${f##*/}" ;; esac
	done
fi
# The same kernel, the same probes: keep the answer, so that nothing is rebuilt.
key=$( (cat "$src"/compat/*.c "$src/compat/probe.sh"; readlink -f "$kdir"
	cat "$kdir/include/config/kernel.release" "$kdir/include/generated/autoconf.h" 2>/dev/null) | sha256sum)
if [ -f "$out/compat_probe.h" ] && grep -q "${key%% *}" "$out/compat_probe.h"; then
	exit 0
fi
dir=$out/compat_probe.d
rm -rf "$dir"
mkdir -p "$dir"
cp "$src"/compat/*.c "$dir"
objs=
for f in "$dir"/*.c; do
	o=${f##*/}
	objs="$objs ${o%.c}.o"
done
echo "obj-m := $objs" > "$dir/Kbuild"
make -k -C "$kdir" M="$dir" W= C=0 $objs > "$dir/log" 2>&1 || true
if [ ! -f "$dir/base.o" ]; then
	cat "$dir/log" >&2
	echo "probe.sh: cannot compile against $kdir (see above)" >&2
	exit 1
fi
{
	echo "/* Made by compat/probe.sh for ${key%% *} */"
	for o in $objs; do
		name=$(echo "${o%.o}" | tr a-z A-Z)
		[ -f "$dir/$o" ] && have=1 || have=0
		echo "#define SHIM_HAVE_$name $have"
	done
} > "$out/compat_probe.h.tmp"
mv "$out/compat_probe.h.tmp" "$out/compat_probe.h"

# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=sh
# Runs the set (or the command) in the guest, with what sets share:
#   thp MODE | load [PARAMETER...] | unload | skip WHY... | needs_module | hmm_tests NEVER ALWAYS COMMAND...
#   ignore_leaks (of others)          and $KERNEL $SET $SEED $THP $RESERVED $@

thp() { echo "$1" >/sys/kernel/mm/transparent_hugepage/enabled; }

# Two private devices and two coherent ones, /dev/hmmrt0 to 3, as far as the kernel can.
load() {
  insmod /modules/hmmrt_shim.ko private_devices=2 coherent_addr=$((RESERVED)),$((RESERVED + 0x10000000)) "$@"
}
unload() { rmmod hmmrt_shim; }

ignore_leaks() { touch /tmp/ignore-leaks; }

# A set that cannot run says so loudly, and is not a failure.
skip() {
  echo "SKIP: $SET on $KERNEL: $*"
  exit 0
}
needs_module() { [ -e /modules/hmmrt_shim.ko ] || skip "driver-shim has no module yet"; }

# hmm_tests NEVER ALWAYS COMMAND...: COMMAND is some form of hmm-tests; NEVER and ALWAYS are how many must pass with
# huge pages off and on. Prints a line of the table for each.
hmm_tests() {
  never=$1 always=$2 bad=0
  shift 2
  echo 1000000000 >/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs  # else it fails some by chance
  for mode in ${THP:-never always}; do
    thp "$mode"
    start=$(date +%s)
    "$@" 2>&1 | uniq | tee /tmp/hmm-tests.log  # a failed test repeats itself until its time is up
    passed=$(grep -c '^ok ' /tmp/hmm-tests.log)
    skipped=$(grep -c '^ok .*SKIP' /tmp/hmm-tests.log)
    sed -n 's/^not ok [0-9]* /failed: /p' /tmp/hmm-tests.log
    all=$(grep -cE '^(not )?ok ' /tmp/hmm-tests.log)
    echo "table: $SET, $KERNEL $(uname -r), THP $mode: passed $((passed - skipped)) of $all, skipped $skipped," \
      " $(($(date +%s) - start)) s"
    case $mode in never) want=$never ;; *) want=$always ;; esac
    [ $((passed - skipped)) -ge "$want" ] || { echo "expected at least $want"; bad=1; }
  done
  return $bad
}

# shellcheck source=/dev/null
. /vm/env
[ -z "$THP" ] || thp "$THP"
echo 8 >/proc/sys/vm/nr_hugepages
cd /tmp || exit 1
if [ -n "$SET" ]; then
  # shellcheck source=/dev/null
  . /vm/set
else
  mkdir -p "$WHERE" && cd "$WHERE" && "$@"
fi

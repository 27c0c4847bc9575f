#!/bin/bash
# qemu-nbd's place in QEMU's iotests (iotests.sh): serves the image through our engine until it is
# told to end, then lets qemu-img check judge what is left.
#
# The tests take the image away or make it anew right after they have sent the signal. So its content
# is kept by a second link until it was judged, and a lock says so to iotests_tool.sh.
set -u

while [ $# -gt 0 ]; do
  case $1 in
    --pid-file=*) pid_file=${1#*=} ;;
    -k) socket=$2 && shift ;;
    -f) format=$2 && shift ;;
    -e | -x) shift ;;  # how many clients, which name: any
    -v | -t) ;;
    -*) echo "iotests_nbd.sh: $1 is not known" >&2 && exit 1 ;;
    *) image=$1 ;;
  esac
  shift
done

[ -e "$image" ] || exit 1  # the tests have only made its backing file so far
exec 9>"$TEST_DIR/nbd.lock"
flock 9
judged=$image.judged
ln -f "$image" "$judged"

# What lies below is said from outside; here the image itself is asked, as QEMU does.
mapfile -t below < <(qemu-img info -U --backing-chain --output=json -f "$format" "$image" |
  python3 -c '
import json, sys
for image in json.load(sys.stdin)[1:]:
    print("--backing", image["filename"] + ":" + image["format"], sep="\n")')

"$QUICKSAVE" image serve "$image" -f "$format" --mode persist --socket "$socket" "${below[@]}" \
  >/dev/null 9>&- &
server=$!
trap 'kill $server' TERM INT
echo $$ >"$pid_file"
# The first wait ends with the signal, the next with the server.
wait $server
wait $server 2>/dev/null
status=$?

said=$(qemu-img check "json:{\"driver\":\"$format\",\"backing\":null,
  \"file\":{\"driver\":\"file\",\"filename\":\"$judged\"}}" 2>&1)
echo "$? server=$status $(echo "$said" | head -n 1)" >>"$IOTESTS_CHECKS"
rm -f "$judged"

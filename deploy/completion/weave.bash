# Completion of weave's commands in bash: source this file, or put it as /etc/bash_completion.d/weave.
_weave() {
    local word=${COMP_WORDS[COMP_CWORD]} words=""
    case ${COMP_WORDS[1]} in
        status) words="connections peers targets dns ipam fastdp agree --json --watch" ;;
        attach) words="--without-dns --rewrite-hosts --add-host --no-multicast-route --json $(ip netns list 2>/dev/null | cut -d' ' -f1)" ;;
        detach|ps) words="--json $(ip netns list 2>/dev/null | cut -d' ' -f1)" ;;
        expose) words="--without-masquerade -h --json net:default" ;;
        hide) words="--json net:default" ;;
        forget) words=$(weave status targets 2>/dev/null) ;;
        rmpeer) words="--strict --force --json $(weave report -f '{{range .Router.Peers}}{{.NickName}} {{end}}' 2>/dev/null)" ;;
    esac
    if [ "$COMP_CWORD" = 1 ]; then
        words=$(weave help 2>/dev/null | sed -n '/^where /q; s/^ \{6\}\([a-z-]\{2,\}\).*/\1/p')
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}
complete -F _weave weave

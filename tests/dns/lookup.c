/* The stub resolver of whatever C library this is linked with: `lookup NAME`, or `lookup -x ADDRESS`. */
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found, *each;
	char text[1025];
	int reverse = argc == 3 && !strcmp(argv[1], "-x");
	if (argc < 2)
		return 2;
	if (reverse)
		hints.ai_flags = AI_NUMERICHOST;
	int error = getaddrinfo(argv[argc - 1], NULL, &hints, &found);
	if (error) {
		puts(gai_strerror(error));
		return 1;
	}
	for (each = found; each; each = each->ai_next) {
		int flags = reverse ? NI_NAMEREQD : NI_NUMERICHOST;
		error = getnameinfo(each->ai_addr, each->ai_addrlen, text, sizeof text, NULL, 0, flags);
		puts(error ? gai_strerror(error) : text);
	}
	return 0;
}

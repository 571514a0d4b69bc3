/* The least that sending over several connections takes: one write and one read a message.
 *
 *     floor PORT CONNECTIONS MESSAGES FILE
 *
 * sends MESSAGES messages over CONNECTIONS connections to a server on 127.0.0.1 that pipelines.
 * FILE has the message as it goes over the wire, with the final dot. It leaves together with the
 * next message's envelope, so one reading brings the replies to both. Nothing is prepared,
 * encoded or kept for a message, and of a reply no more is looked at than its first digit.
 *
 * Prints JSON: messages, seconds by the clock, and seconds of CPU time of the whole process.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST_CONNECTIONS = 1000, MOST_EVENTS = 64, RECEIVE = 16384 };

static const char ENVELOPE[] =
    "MAIL FROM:<ana@example.org>\r\nRCPT TO:<bob@example.net>\r\nDATA\r\n";
static const int ENVELOPE_REPLIES = 3;

struct connection {
    int sock;
    int owed;        /* replies to come, one line each */
    bool has_data;   /* the server waits for a message, or will when it has said all it owes */
    bool in_line;    /* the last reading ended within a line */
};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void *must(void *pointer)
{
    if (!pointer)
        die("floor");
    return pointer;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static double seconds(struct timeval time)
{
    return (double)time.tv_sec + (double)time.tv_usec / 1e6;
}

static double cpu(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

/* Read the file and put the envelope of the next message behind it. */
static char *read_flight(const char *name, size_t *size)
{
    FILE *file = must(fopen(name, "rb"));
    if (fseek(file, 0, SEEK_END))
        die(name);
    *size = (size_t)ftell(file);
    rewind(file);
    char *flight = must(malloc(*size + sizeof ENVELOPE));
    if (fread(flight, 1, *size, file) != *size)
        die(name);
    memcpy(flight + *size, ENVELOPE, sizeof ENVELOPE);
    fclose(file);
    return flight;
}

static void write_all(int sock, const char *data, size_t size)
{
    while (size) {
        ssize_t sent = send(sock, data, size, 0);
        if (sent < 0)
            die("send");
        data += sent;
        size -= (size_t)sent;
    }
}

/* Read once, and count off the replies; the server must have said yes to everything. */
static void read_replies(struct connection *connection)
{
    char data[RECEIVE];
    ssize_t size = recv(connection->sock, data, sizeof data, 0);
    if (size <= 0)
        die("recv");
    for (ssize_t i = 0; i < size; i++) {
        if (!connection->in_line && data[i] != '2' && data[i] != '3') {
            fprintf(stderr, "floor: refused: %.*s\n", (int)(size - i), data + i);
            exit(1);
        }
        connection->in_line = data[i] != '\n';
        connection->owed -= data[i] == '\n';
    }
}

/* Connect, and say EHLO; its reply has several lines, in one segment. */
static void open_connection(struct connection *connection, int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connection->sock = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(connection->sock, (struct sockaddr *)&address, sizeof address))
        die("connect");
    setsockopt(connection->sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    read_replies(connection);
    write_all(connection->sock, "EHLO localhost\r\n", 16);
    read_replies(connection);
    connection->owed = 0;
}

int main(int count, char **arguments)
{
    static struct connection connections[MOST_CONNECTIONS];
    struct epoll_event events[MOST_EVENTS];
    if (count != 5) {
        fprintf(stderr, "usage: floor PORT CONNECTIONS MESSAGES FILE\n");
        return 2;
    }
    int port = atoi(arguments[1]), number = atoi(arguments[2]);
    long messages = atol(arguments[3]), begun = 0, accepted = 0;
    size_t message, envelope = strlen(ENVELOPE);
    char *flight = read_flight(arguments[4], &message);
    int poller = epoll_create1(0);
    double start = now();

    if (number > MOST_CONNECTIONS)
        number = MOST_CONNECTIONS;
    for (int i = 0; i < number && begun < messages; i++, begun++) {
        struct connection *connection = &connections[i];
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
        open_connection(connection, port);
        if (epoll_ctl(poller, EPOLL_CTL_ADD, connection->sock, &event))
            die("epoll_ctl");
        write_all(connection->sock, ENVELOPE, envelope);
        connection->owed = ENVELOPE_REPLIES;
        connection->has_data = true;
    }
    /* A connection whose replies are all there has had one message more accepted, unless they
     * were to its first envelope: so this many are counted before there is one. */
    accepted = -begun;
    while (accepted < messages) {
        int ready = epoll_wait(poller, events, MOST_EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            struct connection *connection = events[i].data.ptr;
            read_replies(connection);
            if (connection->owed)
                continue;
            accepted++;
            if (!connection->has_data)
                continue;
            connection->has_data = begun < messages;
            begun += connection->has_data;
            write_all(connection->sock, flight,
                      message + (connection->has_data ? envelope : 0));
            connection->owed = 1 + (connection->has_data ? ENVELOPE_REPLIES : 0);
        }
    }
    printf("{\"messages\": %ld, \"seconds\": %.6f, \"cpu\": %.6f}\n", accepted, now() - start,
           cpu());
    return 0;
}

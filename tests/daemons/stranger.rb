#!/usr/bin/env ruby
# frozen_string_literal: true

# A daemon for the protocol baton/1, written from examples/PROTOCOL.md alone, to
# find out whether the page is enough. Who wrote it had seen neither the gateway
# nor the libraries of the examples; the suite treats it as one of them.
#
# One thread reads each channel, and each client has a thread of its own.

require "io/wait"
require "json"
require "optparse"
require "socket"

module Baton
  MAGIC = 0xB7
  VERSION = 1
  HEADER_BYTES = 16
  PACKET_MAX = 131_072
  # CMSG_SPACE of 253 descriptors, the most that one packet can carry.
  CONTROL_MAX = 1032
  # Ruby has no name for this flag.
  MSG_CMSG_CLOEXEC = 0x4000_0000

  HELLO, HANDOFF, TAKEN, REFUSED, DONE, RETURN, LOAD, DRAINING, REVOKE, PING, PONG = *1..11
  ONLY_FROM_DAEMON = [TAKEN, REFUSED, DONE, RETURN, LOAD, DRAINING].freeze
  # On a type that we do not know: the frame may be ignored.
  IGNORABLE = 0x80
  # One memfd follows the client for each of these flags, in this order.
  MEMFDS = { body: 0x01, data: 0x02, preread: 0x04 }.freeze
  REASONS = %w[overloaded draining unsupported denied].freeze
  FRAMINGS = %w[none length chunked memfd].freeze

  DATA_BYTES_MAX = 1_048_576
  CLIENT_PATIENCE = 30 # seconds without progress, reading or writing
  LINGER = 2 # seconds that a closing client may take to read its answer
  DRAIN_PATIENCE = 30
  DISCARD_MAX = 65_536 # an unread body up to this is worth reading for RETURN
  BODY_MAX = 64 << 20 # a body that is kept in memory whole
  LINE_MAX = 16_384 # a chunk's size line with its extensions; the trailers

  class ProtocolError < StandardError; end # the channel must end
  class ChannelGone < StandardError; end   # nothing can be sent any more
  class Unsupported < StandardError; end   # a handoff that must be refused
  class Overloaded < StandardError; end    # one that cannot be served just now
  class ClientGone < StandardError; end
  class TimedOut < StandardError; end
  class Revoked < StandardError; end
  class BadBody < StandardError; end

  def self.now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

  # Bytes as text, what is not UTF-8 replaced.
  def self.text(bytes) = bytes.dup.force_encoding(Encoding::UTF_8).scrub("\uFFFD")

  def self.log(line) = warn("baton: #{line}")

  # Frames and their payloads.
  module Wire
    Frame = Struct.new(:type, :flags, :id, :payload)

    module_function

    def frame(type, id = 0, payload = "")
      [MAGIC, VERSION, type, 0, payload.bytesize, id].pack("CCCCL<Q<") << payload.b
    end

    def sections(*parts) = parts.map { |part| [part.bytesize].pack("L<") << part.b }.join

    def split_frames(packet)
      frames = []
      at = 0
      while at < packet.bytesize
        raise ProtocolError, "a frame is cut" if packet.bytesize - at < HEADER_BYTES

        magic, version, type, flags, length, id = packet.byteslice(at, HEADER_BYTES).unpack("CCCCL<Q<")
        raise ProtocolError, "magic or version" unless magic == MAGIC && version == VERSION
        raise ProtocolError, "a frame is cut" if length > packet.bytesize - at - HEADER_BYTES

        frames << Frame.new(type, flags, id, packet.byteslice(at + HEADER_BYTES, length))
        at += HEADER_BYTES + length
      end
      frames
    end

    def split_sections(payload, count)
      at = 0
      parts = Array.new(count) do
        length = payload.byteslice(at, 4).to_s.unpack1("L<")
        raise ProtocolError, "a section is cut" if length.nil? || length > payload.bytesize - at - 4

        at += 4 + length
        payload.byteslice(at - length, length)
      end
      raise ProtocolError, "bytes behind the sections" unless at == payload.bytesize

      parts
    end

    def object(bytes)
      text = bytes.dup.force_encoding(Encoding::UTF_8)
      # Members that we do not know may be nested deeper than Ruby's 100.
      value = text.valid_encoding? ? JSON.parse(text, max_nesting: 1000) : nil
      raise ProtocolError, "not a JSON object" unless value.is_a?(Hash)

      value
    rescue JSON::ParserError
      raise ProtocolError, "not JSON"
    end
  end

  # The client's socket, after TAKEN. Every wait ends early when `wake` becomes
  # readable, which says that the gateway revoked the client.
  class Client
    attr_reader :io, :bytes_out

    def initialize(io, wake)
      @io = io
      @wake = wake
      @bytes_out = 0
      @gone = false
    end

    def write(bytes)
      rest = bytes.b
      until rest.empty?
        sent = guard { @io.write_nonblock(rest, exception: false) }
        next wait(for_room: true) if sent == :wait_writable

        @bytes_out += sent
        rest = rest.byteslice(sent..)
      end
    end

    # At least one byte and at most `limit`; nil at the end.
    def read(limit)
      loop do
        bytes = guard { @io.read_nonblock(limit, exception: false) }
        return bytes unless bytes == :wait_readable

        wait
      end
    end

    # Until the client is gone. What it sends is thrown away: the connection
    # closes afterwards in any case, and unread bytes would hide its end.
    def wait_for_end
      loop do
        bytes = guard { @io.read_nonblock(65_536, exception: false) }
        break if bytes.nil?

        wait(seconds: nil) if bytes == :wait_readable
      end
      @gone = true
      raise ClientGone
    end

    # Closing with unread bytes resets the connection and can destroy the
    # answer on its way, so the rest is read first, for a moment.
    def close
      return if @io.closed?

      linger unless @gone
    rescue IOError, SystemCallError
      nil
    ensure
      @io.close
    end

    def close_at_once = @io.close

    private

    def linger
      @io.shutdown(Socket::SHUT_WR)
      deadline = Baton.now + LINGER
      loop do
        bytes = @io.read_nonblock(65_536, exception: false)
        left = deadline - Baton.now
        break if bytes.nil? || left <= 0

        @io.wait_readable(left) if bytes == :wait_readable
      end
    end

    def wait(for_room: false, seconds: CLIENT_PATIENCE)
      readers = for_room ? [@wake] : [@wake, @io]
      ready, = IO.select(readers, for_room ? [@io] : nil, nil, seconds)
      raise TimedOut if ready.nil?
      raise Revoked if ready.include?(@wake)
    end

    def guard
      yield
    rescue SystemCallError
      @gone = true
      raise ClientGone
    end
  end

  # The request's body: preread bytes, then the socket, as one stream.
  class Body
    # What was read and is not the body's: the next request's first bytes.
    attr_reader :rest

    def initialize(handoff, rest)
      @client = handoff.client
      @framing = handoff.framing
      @remaining = @framing == "length" ? handoff.remaining : 0
      @memfd = handoff.memfds[:body]
      @rest = rest
      # A client may be waiting for our word before it sends its body; behind a
      # final head, or to HTTP/1.0, there is no such word.
      @expects = handoff.header("expect").any? { |value| value.downcase.include?("100-continue") }
      @may_ask = @expects && !handoff.head_sent? && handoff.version != "1.0"
      @complete = @framing == "none" || @framing == "memfd" || (@framing == "length" && @remaining.zero?)
    end

    def complete? = @complete

    # Could the body be read and thrown away, after an answer was written? Not
    # when the client still waits for 100 Continue: it may never send.
    def discardable?
      return true if complete?
      return !@expects if @framing == "chunked"

      @remaining <= DISCARD_MAX && (!@expects || @remaining <= @rest.bytesize)
    end

    def discard
      @may_ask = false
      left = DISCARD_MAX
      each { |piece| return if (left -= piece.bytesize).negative? } unless complete?
    rescue BadBody, ClientGone, TimedOut
      nil # it stays incomplete, which forbids RETURN
    end

    def read_all
      bytes = +"".b
      each do |piece|
        raise BadBody, "too long" if bytes.bytesize + piece.bytesize > BODY_MAX

        bytes << piece
      end
      bytes
    end

    private

    def each(&block)
      case @framing
      when "length" then exactly(@remaining, &block)
      when "chunked" then chunks(&block)
      when "memfd"
        size = @memfd.stat.size
        # Its position is shared with the sender's copy, hence pread.
        (0...size).step(1 << 20) { |at| yield @memfd.pread([1 << 20, size - at].min, at) }
      end
      @complete = true
    end

    # Never asks the socket for more than is missing.
    def exactly(count)
      while count.positive?
        @rest << more([count, 65_536].min) if @rest.empty?
        piece = @rest.slice!(0, count)
        count -= piece.bytesize
        yield piece
      end
    end

    def chunks(&block)
      loop do
        size = line(LINE_MAX)[/\A(\h{1,16})(?:;.*)?\z/mn, 1] or raise BadBody, "a chunk's size"
        break if size.hex.zero?

        exactly(size.hex, &block)
        raise BadBody, "a chunk's end" unless line(0).empty?
      end
      left = LINE_MAX
      until (trailer = line(left)).empty?
        left -= trailer.bytesize
      end
    end

    # Up to CR LF, which is thrown away. What is read beyond stays in @rest.
    def line(max)
      until (length = @rest.index("\r\n"))
        # Room for the line and a CR whose LF has not come yet.
        raise BadBody, "a line is too long" if @rest.bytesize > max + 1

        @rest << more(4096)
      end
      raise BadBody, "a line is too long" if length > max

      @rest.slice!(0, length + 2).byteslice(0, length)
    end

    def more(limit)
      if @may_ask
        @may_ask = false
        @expects = false
        @client.write("HTTP/1.1 100 Continue\r\n\r\n")
      end
      @client.read(limit) or raise ClientGone
    end
  end

  # One client, from HANDOFF to REFUSED, DONE or RETURN. It is the gateway's
  # until `take` says true; before that only `refuse` may be called.
  class Handoff
    attr_reader :id, :metadata, :metadata_json, :memfds, :client, :body, :data

    def initialize(channel, id, metadata, sections, descriptors)
      @channel = channel
      @id = id
      @metadata = metadata
      @metadata_json, @data, @preread = sections
      @socket, @memfds = descriptors
      @lock = Mutex.new
      @state = :lent
    end

    # What is wrong with a handoff alone is told by REFUSED. Called before
    # TAKEN, and touches nothing of the client's.
    def prepare
      unless FRAMINGS.include?(framing) && (framing == "memfd") == @memfds.key?(:body)
        raise Unsupported, "the body's framing"
      end
      raise Unsupported, "remaining" unless remaining.is_a?(Integer) && !remaining.negative?

      # Of a pipe, say, no size could be trusted.
      raise Unsupported, "a memfd that is no file" unless @memfds.each_value.all? { |memfd| memfd.stat.file? }

      size = @memfds[:data]&.stat&.size || @data.bytesize
      raise Unsupported, "more data than data_bytes_max" if size > DATA_BYTES_MAX

      @data = content(:data) || @data
      @preread = content(:preread) || @preread
      head_bytes = member("request", "head_bytes") || 0
      unless head_bytes.is_a?(Integer) && head_bytes.between?(0, @preread.bytesize)
        raise Unsupported, "head_bytes"
      end

      @wake, @waker = IO.pipe
      @client = Client.new(@socket, @wake)
      @body = Body.new(self, @preread.byteslice(head_bytes..))
      # REVOKE or the channel's end may have been quicker than we.
      @lock.synchronize { @waker.close if @revoked || @state == :abandoned }
    rescue Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM
      raise Overloaded
    rescue IOError, SystemCallError => error
      raise Unsupported, "a memfd that cannot be read: #{error.class}"
    end

    # A member of the metadata; nil where it, or an object around it, is absent.
    def member(*path)
      path.reduce(@metadata) { |object, name| object.is_a?(Hash) ? object[name] : nil }
    end

    def string(*path) = member(*path).then { |value| value if value.is_a?(String) }

    def target = string("request", "target")
    def version = string("request", "version")
    def method_is?(name) = string("request", "method") == name
    def head_sent? = member("response", "head_sent") == true
    def framing = member("body", "framing") || "none"
    def remaining = member("body", "remaining") || 0

    # Pairs of a name and the value's bytes.
    def headers
      @headers ||= Array(member("request", "headers")).filter_map do |name, value|
        value = value["base64"].to_s.unpack1("m") if value.is_a?(Hash)
        [name, value.b] if name.is_a?(String) && value.is_a?(String)
      end
    end

    def header(name) = headers.filter_map { |key, value| value if key == name }

    # What is known before the answer is written; it decides whether the
    # answer's head says `Connection: close`.
    def may_return?
      closes = header("connection").join(",").downcase.split(",").map(&:strip).include?("close")
      !head_sent? && version != "1.0" && !closes && @body.discardable? &&
        @body.rest.bytesize < PACKET_MAX - 4096 && @channel.alive?
    end

    def refuse(reason, retry_after_s: nil, message: nil)
      # The gateway may use the client as soon as it has read REFUSED, so our
      # copy is closed first.
      @lock.synchronize { @state = :over }
      close_copies
      @channel.forget(self)
      @channel.send_json(REFUSED, @id, { reason: reason, retry_after_s: retry_after_s, message: message }.compact)
    rescue ChannelGone
      nil
    end

    # True: the client is ours. False: it never was, and our copy is closed.
    def take
      # The lock is held over the send: a channel's end must see either a
      # client that is lent or one that is taken, nothing between.
      @lock.synchronize do
        raise ChannelGone if @state == :abandoned

        @channel.send_packet(Wire.frame(TAKEN, @id))
        @state = :taken
      end
      @taken_at = Baton.now
      true
    rescue ChannelGone
      drop
      false
    end

    def respond(type, content, status: "200 OK", keep: false, result: "ok", message: nil)
      keep &&= may_return?
      fields = { "Content-Type" => type, "Content-Length" => content.bytesize }
      fields["Connection"] = "close" unless keep
      start_response(status, fields, content)
      @body.discard if keep
      keep && @body.complete? ? give_back : done(result, message: message)
    rescue ClientGone
      done("client-gone")
    rescue TimedOut
      done("timeout")
    rescue Revoked
      done("revoked")
    end

    # Writes the head, unless the gateway has, and the first bytes of the
    # content, unless the method has none.
    def start_response(status, fields, content)
      head = ["HTTP/1.1 #{status}", *fields.map { |name, value| "#{name}: #{value}" }, "", ""].join("\r\n")
      head = "" if head_sent?
      before = @client.bytes_out
      @client.write(method_is?("HEAD") ? head : head.b << content.b)
    ensure
      written = @client.bytes_out - before
      @status = status.to_i if head && !head.empty? && written >= head.bytesize
    end

    def done(result, message: nil, plain: false)
      plain ? @client.close_at_once : @client.close
      account = account(result, message)
      close_copies
      @channel.forget(self)
      @channel.send_json(DONE, @id, account)
    rescue ChannelGone
      nil
    end

    # RETURN: the client's next request is the gateway's again.
    def give_back
      payload = Wire.sections(JSON.generate(account("ok", nil)), @body.rest)
      return done("ok") if HEADER_BYTES + payload.bytesize > PACKET_MAX

      @channel.forget(self)
      @channel.send_packet(Wire.frame(RETURN, @id, payload), @socket)
    rescue ChannelGone
      @client.close
    ensure
      close_copies
    end

    # Waits; raises Revoked when REVOKE comes meanwhile. False: the channel
    # ended before the client was taken.
    def pause(seconds)
      @wake.wait_readable(seconds)
      raise Revoked if @revoked

      @state != :abandoned
    end

    def revoked? = @revoked

    def revoke
      @lock.synchronize do
        @revoked = true
        @waker&.close
      end
    end

    # A taken client does not care; one that was only lent is given up.
    def channel_ended
      @lock.synchronize do
        next unless @state == :lent

        @state = :abandoned
        @waker&.close
      end
    end

    # Closes our copy of a client that is not ours, untouched.
    def drop
      close_copies
      @channel.forget(self)
    end

    # Not answered, by a fault of the program: the gateway must hear something.
    def rescue_from_fault
      case @state
      when :lent then refuse("unsupported", message: "internal error")
      when :abandoned then drop
      when :taken then @socket.closed? ? drop : done("error", message: "internal error", plain: true)
      end
    end

    private

    def content(name)
      memfd = @memfds[name] or return
      size = memfd.stat.size
      size.zero? ? "".b : memfd.pread(size, 0)
    end

    def account(result, message)
      { result: result, status: @status, bytes_out: @client.bytes_out,
        duration_us: ((Baton.now - @taken_at) * 1_000_000).round, message: message }.compact
    end

    def close_copies
      [@socket, *@memfds.values, @wake].compact.each(&:close)
      @lock.synchronize { @waker&.close }
    end
  end

  # One connection of one gateway's worker.
  class Channel
    def initialize(server, socket, in_flight_max)
      @server = server
      @socket = socket
      @handoffs = {}
      @lock = Mutex.new
      @greeted = false
      @alive = true
      send_json(HELLO, 0, versions: [VERSION], name: "ruby", pid: Process.pid,
                          in_flight_max: in_flight_max, data_bytes_max: DATA_BYTES_MAX)
    end

    def alive? = @alive

    def run
      while (packet, descriptors = receive)
        begin
          frames = judge(packet, descriptors)
        rescue ProtocolError => error
          descriptors.each(&:close)
          Baton.log("channel ended: #{error.message}")
          break
        end
        frames.each { |frame, content| act(frame, content) }
      end
    rescue ChannelGone, IOError, SystemCallError
      nil
    ensure
      close
    end

    def close
      @alive = false
      # The shutdown wakes whoever waits for room on this socket.
      begin
        @socket.shutdown
      rescue IOError, SystemCallError
        nil
      end
      @socket.close
      @lock.synchronize { @handoffs.values }.each(&:channel_ended)
    end

    # Whole packets from several threads do not mix; a full socket is waited for.
    def send_packet(packet, *descriptors)
      rights = descriptors.empty? ? [] : [Socket::AncillaryData.unix_rights(*descriptors)]
      @socket.sendmsg(packet, Socket::MSG_NOSIGNAL, nil, *rights)
    rescue IOError, SystemCallError
      raise ChannelGone
    end

    def send_json(type, id, object) = send_packet(Wire.frame(type, id, JSON.generate(object)))

    # The handoff is not in flight any more. Called just before the frame that
    # says so: the gateway may use the credit at once.
    def forget(handoff)
      known = @lock.synchronize { @handoffs.delete(handoff.id) }
      @server.release if known
    end

    private

    # The next packet and all its descriptors, or nil at the channel's end.
    def receive
      packet, _address, flags, *controls =
        @socket.recvmsg(PACKET_MAX, MSG_CMSG_CLOEXEC, CONTROL_MAX, scm_rights: true)
      return if packet.nil? || packet.empty?

      descriptors = controls.select { |control| control.cmsg_is?(:SOCKET, :RIGHTS) }.flat_map(&:unix_rights)
      @cut = (flags & (Socket::MSG_TRUNC | Socket::MSG_CTRUNC)) != 0
      [packet.b, descriptors]
    rescue Errno::ECONNRESET
      # Said once, ahead of what was sent before and is still to be read.
      retry
    end

    # Reads a whole packet before any of it counts. Gives pairs of a frame and
    # what its payload means.
    def judge(packet, descriptors)
      raise ProtocolError, "a packet was cut" if @cut

      left = descriptors.dup
      greeted = @greeted
      ids = @lock.synchronize { @handoffs.keys }
      judged = Wire.split_frames(packet).map do |frame|
        raise ProtocolError, "not HELLO first, or twice" unless greeted ^ (frame.type == HELLO)

        greeted = true
        [frame, meaning(frame, left, ids)]
      end
      raise ProtocolError, "descriptors too many" unless left.empty?

      @greeted = greeted
      judged
    end

    def meaning(frame, descriptors, ids)
      case frame.type
      when HELLO
        raise ProtocolError, "HELLO with an id" unless frame.id.zero?

        versions = Wire.object(frame.payload)["versions"]
        raise ProtocolError, "no common version" unless versions.is_a?(Array) && versions.include?(VERSION)
      when HANDOFF
        raise ProtocolError, "an id twice, or 0" if frame.id.zero? || ids.include?(frame.id)

        ids << frame.id
        handoff(frame, descriptors)
      when REVOKE
        raise ProtocolError, "REVOKE with id 0" if frame.id.zero?

        Wire.object(frame.payload)
      when PING, PONG then nil
      when *ONLY_FROM_DAEMON then raise ProtocolError, "a frame that only daemons send"
      else raise ProtocolError, "unknown type #{frame.type}" if (frame.flags & IGNORABLE).zero?
      end
    end

    def handoff(frame, descriptors)
      sections = Wire.split_sections(frame.payload, 3)
      metadata = Wire.object(sections.first)
      named = MEMFDS.select { |_, flag| frame.flags.anybits?(flag) }.keys
      if (named.include?(:data) && !sections[1].empty?) || (named.include?(:preread) && !sections[2].empty?)
        raise ProtocolError, "a section and its memfd"
      end

      socket, *memfds = descriptors.shift(1 + named.size)
      raise ProtocolError, "descriptors too few" unless memfds.size == named.size
      unless socket.is_a?(BasicSocket) && socket.getsockopt(:SOCKET, :TYPE).int == Socket::SOCK_STREAM
        raise ProtocolError, "not a stream socket"
      end

      Handoff.new(self, frame.id, metadata, sections, [socket, named.zip(memfds).to_h])
    end

    def act(frame, content)
      case frame.type
      when HANDOFF
        @lock.synchronize { @handoffs[content.id] = content }
        @server.handle(content)
      when REVOKE then @lock.synchronize { @handoffs[frame.id] }&.revoke
      when PING then send_packet(Wire.frame(PONG, 0, frame.payload))
      end
    rescue ChannelGone
      # Only our answers are lost. What the gateway sent before it went is read on.
      nil
    end
  end

  class Server
    def initialize(path, in_flight_max, &application)
      @path = path
      @in_flight_max = in_flight_max
      @application = application
      @uids = allowed_uids
      @channels = []
      @lock = Mutex.new
      @idle = ConditionVariable.new
      @in_flight = 0
      @unfinished = 0
      @draining = false
    end

    def run
      # Each client costs a few descriptors; the soft limit is often 1024.
      Process.setrlimit(:NOFILE, Process.getrlimit(:NOFILE).last)
      signal, @signaller = IO.pipe
      trap("TERM") { @signaller.write_nonblock(".", exception: false) }
      trap("INT") { @signaller.write_nonblock(".", exception: false) }
      listen
      puts "ready #{@path}"
      $stdout.flush
      loop do
        ready, = IO.select([@listener, signal])
        break if ready.include?(signal)

        accept
      end
      drain
    end

    # Called by a channel's thread. What is admitted goes on in its own thread.
    def handle(handoff)
      verdict = @lock.synchronize do
        @in_flight += 1
        if @draining then "draining"
        elsif @in_flight > @in_flight_max then "overloaded"
        else
          @unfinished += 1
          nil
        end
      end
      verdict ? handoff.refuse(verdict) : Thread.new { serve(handoff) }
    end

    def release = @lock.synchronize { @in_flight -= 1 }

    private

    def serve(handoff)
      handoff.prepare
      @application.call(handoff)
    rescue Unsupported => error
      handoff.refuse("unsupported", message: error.message)
    rescue Overloaded
      handoff.refuse("overloaded")
    rescue StandardError => error
      Baton.log("#{error.class}: #{error.message}")
      handoff.rescue_from_fault
    ensure
      @lock.synchronize do
        @unfinished -= 1
        @idle.broadcast
      end
    end

    def allowed_uids
      list = ENV["BATON_GATEWAY_UIDS"] or return [Process.euid, 0]
      # Integer() alone would let signs, spaces and underscores pass.
      uids = list.split(",", -1).map { |uid| uid[/\A\d{1,10}\z/]&.to_i }
      return uids if uids.any? && uids.all? { |uid| uid && uid < 1 << 32 }

      abort "BATON_GATEWAY_UIDS is not a list of uids"
    end

    def listen
      @listener = Socket.new(:UNIX, :SEQPACKET)
      address = Socket.sockaddr_un(@path)
      remove_stale_file(address)
      # The mask, not a chmod later: nobody else may connect in between.
      mask = File.umask(0o117)
      @listener.bind(address)
      File.umask(mask)
      @file = File.lstat(@path)
      @listener.listen(128)
    rescue SystemCallError => error
      abort "#{@path}: #{error.message}"
    end

    def remove_stale_file(address)
      # connect says ECONNREFUSED for files of other kinds as well.
      return unless File.socket?(@path)

      probe = Socket.new(:UNIX, :SEQPACKET)
      probe.connect_nonblock(address)
      abort "#{@path}: somebody listens there"
    rescue Errno::ECONNREFUSED
      File.unlink(@path)
    ensure
      probe&.close
    end

    def accept
      socket, = @listener.accept_nonblock
      _pid, uid, _gid = socket.getsockopt(:SOCKET, :PEERCRED).unpack("lLL")
      unless @uids.include?(uid)
        Baton.log("uid #{uid} may not hand over clients")
        return socket.close
      end
      channel = Channel.new(self, socket, @in_flight_max)
      @lock.synchronize { @channels << channel }
      Thread.new do
        channel.run
        @lock.synchronize { @channels.delete(channel) }
      end
    rescue IO::WaitReadable, ChannelGone
      socket&.close
    rescue SystemCallError => error
      # Out of descriptors, most likely; the connection waits in the queue.
      Baton.log("accept: #{error.message}")
      sleep 0.1
    end

    def drain
      deadline = Baton.now + DRAIN_PATIENCE
      @listener.close
      channels = @lock.synchronize do
        @draining = true
        @channels.dup
      end
      # In threads, since one gateway that does not read must not hold up all.
      words = channels.map do |channel|
        Thread.new do
          channel.send_packet(Wire.frame(DRAINING))
        rescue ChannelGone
          nil
        end
      end
      @lock.synchronize do
        while @unfinished.positive? && (left = deadline - Baton.now).positive?
          @idle.wait(@lock, left)
        end
      end
      words.each { |word| word.join(1) }
      channels.each(&:close)
      remove_own_file
    end

    # A new instance may have put its own in the place.
    def remove_own_file
      now = File.lstat(@path)
      File.unlink(@path) if [now.dev, now.ino] == [@file.dev, @file.ino]
    rescue SystemCallError
      nil
    end
  end
end

# The conformance program: answers by the request's path.
class Program
  ENDS = {
    Baton::ClientGone => "client-gone", Baton::TimedOut => "timeout", Baton::Revoked => "revoked"
  }.freeze

  def initialize(interval) = @interval = interval

  def call(handoff)
    path, query = handoff.target.to_s.split("?", 2)
    parameters = query.to_s.split("&").to_h { |pair| (pair.split("=", 2) + ["", ""]).first(2) }
    return refuse(handoff, parameters) if path == "/refuse"

    # Before TAKEN there is nothing to be done but to wait or to refuse.
    return handoff.drop if path == "/late" && !handoff.pause(3)

    answer(handoff, path, parameters) if handoff.take
  rescue Baton::Revoked # during the pause
    handoff.refuse("denied", message: "revoked")
  end

  private

  def refuse(handoff, parameters)
    reason = parameters["reason"]
    seconds = parameters["retry_after"].to_i
    handoff.refuse(Baton::REASONS.include?(reason) ? reason : "overloaded",
                   retry_after_s: (seconds if seconds.positive?), message: "as asked")
  end

  def answer(handoff, path, parameters)
    case path
    when "/hello", "/late" then handoff.respond("text/plain", "hello\n")
    when "/return" then handoff.respond("text/plain", "returned\n", keep: true)
    when "/unread" then handoff.respond("text/plain", "unread\n", keep: true)
    when "/echo" then handoff.respond("application/octet-stream", handoff.body.read_all, keep: true)
    when "/env" then handoff.respond("application/json", JSON.generate(environment(handoff)), keep: true)
    when "/meta" then handoff.respond("application/json", handoff.metadata_json, keep: true)
    when "/data" then handoff.respond("application/octet-stream", handoff.data, keep: true)
    when "/hold" then hold(handoff)
    when "/fail"
      handoff.respond("text/plain", "failed\n", status: "500 Internal Server Error",
                                                result: "error", message: "as asked")
    when "/large" then large(handoff, parameters["bytes"].to_i)
    when "/drop" then handoff.done("error", message: "not finished", plain: true)
    else events(handoff)
    end
  rescue Baton::BadBody => error
    handoff.respond("text/plain", "#{error.message}\n", status: "400 Bad Request", result: "error")
  rescue *ENDS.keys => error
    handoff.done(ENDS.fetch(error.class))
  end

  def hold(handoff)
    handoff.start_response("200 OK", { "Content-Type" => "text/plain", "Connection" => "close" }, "held\n")
    handoff.client.wait_for_end
  end

  def large(handoff, count)
    fields = { "Content-Type" => "application/octet-stream", "Content-Length" => count, "Connection" => "close" }
    handoff.start_response("200 OK", fields, "")
    block = "a" * 65_536
    count = 0 if handoff.method_is?("HEAD")
    while count.positive?
      raise Baton::Revoked if handoff.revoked?

      handoff.client.write(block.byteslice(0, count))
      count -= block.bytesize
    end
    handoff.done("ok")
  end

  def events(handoff)
    fields = { "Content-Type" => "text/event-stream", "Cache-Control" => "no-store", "Connection" => "close" }
    handoff.start_response("200 OK", fields, "")
    unless handoff.method_is?("HEAD")
      (1..10).each do |n|
        text = n == 1 ? Baton.text(handoff.data) : "hello"
        handoff.client.write("data: #{JSON.generate(n: n, text: text)}\n\n")
        handoff.pause(@interval)
      end
      handoff.client.write("event: done\ndata: {}\n\n")
    end
    handoff.done("ok")
  end

  # CGI variables, RFC 3875.
  def environment(handoff)
    authority = handoff.string("request", "authority")
    role = handoff.string("metadata", "role")
    secure = handoff.string("request", "scheme") == "https" || handoff.member("tls")
    env = {
      "GATEWAY_INTERFACE" => "CGI/1.1", "SERVER_PROTOCOL" => "HTTP/#{handoff.version || "1.1"}",
      "REQUEST_METHOD" => handoff.string("request", "method"), "REQUEST_URI" => handoff.target,
      "QUERY_STRING" => handoff.target&.partition("?")&.last,
      "CONTENT_LENGTH" => content_length(handoff), "CONTENT_TYPE" => handoff.header("content-type").first,
      "REMOTE_ADDR" => handoff.string("client", "ip"), "REMOTE_PORT" => handoff.member("client", "port"),
      "SERVER_NAME" => authority&.sub(/:\d*\z/, "") || handoff.string("server", "ip"),
      "SERVER_PORT" => handoff.member("server", "port"), "HTTPS" => ("on" if secure),
      "HANDOFF_DATA" => (handoff.data unless handoff.data.include?("\0")),
      "HANDOFF_ID" => handoff.string("id") || "#{Process.pid}-#{handoff.id}",
      "HANDOFF_ROLE" => role || "responder", "HANDOFF_HEAD_SENT" => ("1" if handoff.head_sent?)
    }
    env.merge!(header_variables(handoff))
    env.compact.transform_values { |value| Baton.text(value.to_s) }
  end

  def content_length(handoff)
    case handoff.framing
    when "length" then handoff.remaining
    when "memfd" then handoff.memfds[:body].stat.size
    end
  end

  # `Proxy` would pass for the variable HTTP_PROXY that libraries obey, and `_`
  # cannot be told from `-`.
  def header_variables(handoff)
    handoff.headers.reject { |name, _| name.include?("_") || %w[proxy content-type content-length].include?(name) }
           .group_by(&:first)
           .to_h do |name, pairs|
             joint = name == "cookie" ? "; " : ", "
             ["HTTP_#{name.upcase.tr("-", "_")}", pairs.map(&:last).join(joint)]
           end
  end
end

if $PROGRAM_NAME == __FILE__
  interval = 100
  in_flight_max = 100
  options = OptionParser.new("usage: #{$PROGRAM_NAME} SOCKET baton [--interval MS] [--in-flight-max N]") do |parser|
    parser.on("--interval MS", Integer) { |value| interval = value }
    parser.on("--in-flight-max N", Integer) { |value| in_flight_max = value }
  end
  begin
    path, dialect, *more = options.parse(ARGV)
  rescue OptionParser::ParseError => error
    warn error.message
  end
  unless path && dialect == "baton" && more.empty?
    warn options.banner
    exit 2
  end
  program = Program.new(interval / 1000.0)
  Baton::Server.new(path, in_flight_max) { |handoff| program.call(handoff) }.run
end

/// Messages as bytes and back, and every way in which bytes can be wrong.

import Primitives
import TestSupport
import Testing
import Wire

@Suite struct WireTests {
    @Test func everyMessageIsReadAsItWasWritten() throws {
        for message in Samples.requests.map(\.message) + Samples.moreRequests {
            #expect(try Request(decoding: message.encoded()) == message)
        }
        for message in Samples.replies.map(\.message) + Samples.moreReplies {
            #expect(try Reply(decoding: message.encoded()) == message)
        }
    }

    @Test func everyKindHasItsGoldenBytes() throws {
        #expect(Samples.requests.count + Samples.replies.count == GoldenFrames.hexadecimal.count)
        for (name, message) in Samples.requests {
            #expect(message.encoded() == GoldenFrames.bytes(name), "\(name)")
        }
        for (name, message) in Samples.replies {
            #expect(message.encoded() == GoldenFrames.bytes(name), "\(name)")
        }
    }

    @Test func everyTruncationIsRefused() {
        for bytes in Samples.requests.map({ $0.message.encoded() }) {
            for length in 0..<bytes.count {
                #expect(throws: WireError.self) { _ = try Request(decoding: Array(bytes.prefix(length))) }
            }
        }
        for bytes in Samples.replies.map({ $0.message.encoded() }) {
            for length in 0..<bytes.count {
                #expect(throws: WireError.self) { _ = try Reply(decoding: Array(bytes.prefix(length))) }
            }
        }
    }

    @Test func everySingleBitFlipIsRefused() {
        for bytes in Samples.requests.map({ $0.message.encoded() }) {
            for bit in 0..<bytes.count * 8 {
                #expect(throws: WireError.self) { _ = try Request(decoding: Self.flipped(bytes, bit)) }
            }
        }
        for bytes in Samples.replies.map({ $0.message.encoded() }) {
            for bit in 0..<bytes.count * 8 {
                #expect(throws: WireError.self) { _ = try Reply(decoding: Self.flipped(bytes, bit)) }
            }
        }
    }

    @Test func aBodyCutShortBehindAnHonestHeaderIsRefused() {
        for (name, message) in Samples.requests {
            let body = Array(message.encoded().dropFirst(16))
            for length in 0..<body.count {
                let bytes = Frame(kind: message.encoded()[5], body: Array(body.prefix(length))).encoded()
                #expect(throws: WireError.self, "\(name) \(length)") { _ = try Request(decoding: bytes) }
            }
            let longer = Frame(kind: message.encoded()[5], body: body + [0]).encoded()
            #expect(throws: WireError.malformed(field: "end", problem: "1 bytes follow the last field")) {
                _ = try Request(decoding: longer)
            }
        }
    }

    @Test func aRequestIsNoReplyAndAReplyNoRequest() {
        #expect(throws: WireError.unknownKind(129)) { _ = try Request(decoding: Samples.replies[0].message.encoded()) }
        #expect(throws: WireError.unknownKind(1)) { _ = try Reply(decoding: Samples.requests[0].message.encoded()) }
    }

    @Test func theHeaderIsCheckedInOrder() throws {
        let good = Request.poll(Poll(session: 1, lastContribution: nil)).encoded()
        func refused(_ change: (inout [UInt8]) -> Void) -> WireError? {
            var bytes = good
            change(&bytes)
            do throws(WireError) {
                _ = try Request(decoding: bytes)
                return nil
            } catch {
                return error
            }
        }
        #expect(refused { $0 = Array("GET / HTTP/1.1\r\n\r\n".utf8) } == .notTributary)
        #expect(refused { $0 = [] } == .truncated(needed: 16, available: 0))
        #expect(
            refused {
                $0[0] = 0; $0[4] = 9
            } == .notTributary)
        #expect(
            refused {
                $0[4] = 4; $0[5] = 77
            } == .unsupportedVersion(4))
        #expect(
            refused {
                $0[5] = 77; $0[6] = 1
            } == .unknownKind(77))
        #expect(
            refused {
                $0[6] = 1; $0[11] = 0xFF
            } == .reservedNotZero)
        #expect(refused { $0[11] = 0xFF } == .bodyTooLarge(count: 0xFF00_0009, limit: WireLimits.controlBodyBytes))
        #expect(refused { $0[8] = 10 } == .truncated(needed: 26, available: 25))
        #expect(refused { $0[8] = 8 } == .trailing(1))
        #expect(refused { $0.append(0) } == .trailing(1))
        #expect(refused { $0[20] ^= 1 } == .badChecksum)
        #expect(refused { $0[12] ^= 1 } == .badChecksum)
    }

    @Test func anotherProtocolVersionIsOneClearSentenceOnBothSides() throws {
        var bytes = Samples.requests[0].message.encoded()
        bytes[4] = 7
        do throws(WireError) {
            _ = try Request(decoding: bytes)
            Issue.record("version 7 was accepted")
        } catch {
            #expect(error == .unsupportedVersion(7))
            let refusal = error.refusal
            #expect(refusal.code == .protocolVersion && refusal.retryAfterMilliseconds == nil)
            #expect(refusal.message.contains("protocol version 7") && refusal.message.contains("version 3"))
            // The coordinator's answer is a frame of its own version.
            #expect(Reply.refused(refusal).encoded()[4] == WireLimits.protocolVersion)
            let failure = error.failure(from: "tcp://example:1")
            #expect(failure.status == .protocolError)
            #expect(failure.message.contains("version 7") && failure.message.contains("tcp://example:1"))
        }
    }

    @Test func numbersThatAreNotFiniteAreRefused() {
        for value in [Double.nan, .infinity, -.infinity] {
            let commit = Commit(
                session: 1, kind: .update, round: 1, attempt: 0, digest: Samples.digest(1), totalBytes: 1, exampleCount: 1,
                training: TrainingReport(trainLoss: value, targetTokens: 1, trainSeconds: 1))
            #expect(Self.refusedField { try Request(decoding: Request.commit(commit).encoded()) } == "trainLoss")
            var seconds = commit
            seconds.training = TrainingReport(trainLoss: 1, targetTokens: 1, trainSeconds: Float(value))
            #expect(Self.refusedField { try Request(decoding: Request.commit(seconds).encoded()) } == "trainSeconds")
            let report = ReportEvaluation(
                session: 1, round: 1, lossSum: value, targetTokens: 1, examples: 1, exactMatches: nil)
            #expect(Self.refusedField { try Request(decoding: Request.reportEvaluation(report).encoded()) } == "lossSum")
        }
    }

    @Test func valuesThatCannotBeAreRefusedByName() {
        func upload(_ change: (inout UploadChunk) -> Void) -> String? {
            var message = Samples.upload
            change(&message)
            return Self.refusedField { try Request(decoding: Request.uploadChunk(message).encoded()) }
        }
        #expect(upload { $0.index = 1 } == "index")
        #expect(upload { $0.count = 0 } == "count")
        #expect(upload { $0.count = .max } == "count")
        #expect(upload { $0.count = 2 } == "totalBytes")
        #expect(upload { $0.totalBytes = .max } == "totalBytes")
        #expect(upload { $0.totalBytes = 6 } == "bytes")
        #expect(upload { $0.bytes = [UInt8](repeating: 0, count: WireLimits.chunkBytes + 1) } == "bytes")
        for name in ["", "a/b", "..", "-x", "naïve", "a b", "a\u{0}", String(repeating: "a", count: 65)] {
            var hello = Samples.hello
            hello.name = name
            #expect(Self.refusedField { try Request(decoding: Request.hello(hello).encoded()) } == "name", "\(name)")
        }
        let chunk = Chunk(digest: Samples.digest(1), index: 0, count: 2, bytes: [1])
        #expect(Self.refusedField { try Reply(decoding: Reply.chunk(chunk).encoded()) } == "bytes")
        let report = ReportEvaluation(session: 1, round: 1, lossSum: 1, targetTokens: 1, examples: 1, exactMatches: 2)
        #expect(Self.refusedField { try Request(decoding: Request.reportEvaluation(report).encoded()) } == "exactMatches")
        let blobs = [BlobReference(digest: Samples.digest(1), byteCount: .max, kind: .state, rank: 1)]
        let task = TaskReply(lastContribution: .none, task: .evaluate(EvaluateTask(round: 1, blobs: blobs, derivedDigest: nil)))
        #expect(Self.refusedField { try Reply(decoding: Reply.task(task).encoded()) } == "blob.byteCount")
    }

    @Test func listsAreCountedBeforeMemoryIsTaken() {
        // A list of 4,294,967,295 missing chunks, and one of 65,536 in a body that ends behind the count.
        for count in [UInt32.max, 65_537, 65_536] {
            var body = ByteWriter()
            body.write(ContributionStatus.pending.rawValue)
            body.write(count)
            let bytes = Frame(kind: 133, body: body.bytes).encoded()
            #expect(Self.refusedField { try Reply(decoding: bytes) } == "missing")
        }
        let most = Committed(status: .pending, missing: (0..<UInt32(WireLimits.chunkCount)).map { $0 })
        #expect((try? Reply(decoding: Reply.committed(most).encoded())) == .committed(most))
    }

    @Test func theLargestMessagesFitIntoTheirLimits() throws {
        let chunk = [UInt8](repeating: 1, count: WireLimits.chunkBytes)
        let upload = UploadChunk(
            session: .max, kind: .update, round: .max, digest: Samples.digest(1), index: 0, count: 1,
            totalBytes: UInt64(chunk.count), bytes: chunk)
        #expect(try Request(decoding: Request.uploadChunk(upload).encoded()) == .uploadChunk(upload))
        let blob = BlobReference(digest: Samples.digest(1), byteCount: 1, kind: .segment, rank: 1)
        let train = TrainTask(
            round: 1, attempt: 1, deadlineMilliseconds: 1, blobs: [BlobReference](repeating: blob, count: WireLimits.blobCount),
            derivedDigest: blob.digest)
        let reply = Reply.task(TaskReply(lastContribution: .none, task: .train(train)))
        #expect(reply.encoded().count <= WireLimits.frameBytes)
        #expect(try Reply(decoding: reply.encoded()) == reply)

        let tooMuch = Frame(kind: 4, body: [UInt8](repeating: 0, count: WireLimits.chunkBodyBytes + 1)).encoded()
        #expect(throws: WireError.bodyTooLarge(count: WireLimits.chunkBodyBytes + 1, limit: WireLimits.chunkBodyBytes)) {
            _ = try Request(decoding: tooMuch)
        }
    }

    @Test func aLongSentenceIsCutAtACharacterAndStillArrives() throws {
        let refusal = Refusal(code: .busy, message: String(repeating: "ß大", count: 1000), retryAfterMilliseconds: 1)
        guard case .refused(let read) = try Reply(decoding: Reply.refused(refusal).encoded()) else {
            Issue.record("not a refusal")
            return
        }
        #expect(read.message.utf8.count <= WireLimits.sentenceBytes)
        #expect(read.message.utf8.count > WireLimits.sentenceBytes - 8)
        #expect(refusal.message.hasPrefix(read.message))
    }

    @Test func chunksCoverTheWholeOnce() {
        let size = WireLimits.chunkBytes
        for count in [0, 1, size - 1, size, size + 1, 5 * size, 5 * size + 17] {
            var end = 0
            for index in 0..<Chunking.count(ofByteCount: count) {
                guard let range = Chunking.range(ofChunk: index, byteCount: count) else {
                    Issue.record("no chunk \(index) of \(count) bytes")
                    return
                }
                #expect(range.lowerBound == end && range.count <= size)
                end = range.upperBound
            }
            #expect(end == count)
            #expect(Chunking.range(ofChunk: Chunking.count(ofByteCount: count), byteCount: count) == nil)
            #expect(Chunking.range(ofChunk: -1, byteCount: count) == nil)
        }
    }

    /// 200,000 seeded mutations, half of them with the checksum made right again: nothing crashes, and what is
    /// accepted is exactly what its message encodes to.
    @Test func mutatedFramesAreRefusedOrCanonical() {
        var generator = SeededGenerator(seed: 1, purpose: "wire mutations")
        let requests = Samples.requests.map { $0.message.encoded() }
        let replies =
            Samples.replies.map { $0.message.encoded() }
            + Samples.moreReplies.map { $0.encoded() }.filter { $0.count < 1000 }
        var accepted = 0
        for turn in 0..<200_000 {
            let pool = turn % 2 == 0 ? requests : replies
            var bytes = pool[generator.integer(below: pool.count)]
            for _ in 0...generator.integer(below: 4) {
                Self.mutate(&bytes, pool, &generator)
            }
            if turn % 4 < 2 { Self.repair(&bytes) }
            let again = turn % 2 == 0 ? (try? Request(decoding: bytes))?.encoded() : (try? Reply(decoding: bytes))?.encoded()
            if let again {
                accepted += 1
                if again != bytes { Issue.record("turn \(turn): accepted, but encodes differently: \(bytes)") }
            }
        }
        // Enough of them are valid (another session, another number) that the fields behind the checksum are reached.
        #expect(accepted > 5_000)
    }

    static func mutate(_ bytes: inout [UInt8], _ pool: [[UInt8]], _ generator: inout SeededGenerator) {
        let position = bytes.isEmpty ? 0 : generator.integer(below: bytes.count)
        switch generator.integer(below: 7) {
        case 0 where !bytes.isEmpty: bytes[position] ^= 1 << UInt8(generator.integer(below: 8))
        case 1 where !bytes.isEmpty: bytes[position] = UInt8(generator.integer(below: 256))
        case 2 where !bytes.isEmpty: bytes.remove(at: position)
        case 3: bytes.insert(UInt8(generator.integer(below: 256)), at: position)
        case 4: bytes.removeLast(min(bytes.count, generator.integer(below: 9)))
        case 5 where bytes.count > position + 4:
            // An extreme where a count or a length may stand.
            let value: [UInt8] = generator.integer(below: 2) == 0 ? [255, 255, 255, 255] : [0, 0, 0, 0]
            bytes.replaceSubrange(position..<position + 4, with: value)
        default:
            // The end of another message.
            let other = pool[generator.integer(below: pool.count)]
            bytes = Array(bytes.prefix(position)) + other.dropFirst(min(position, other.count))
        }
    }

    /// Makes magic, version, reserved bytes, length and checksum right.
    static func repair(_ bytes: inout [UInt8]) {
        guard bytes.count >= 16 else { return }
        bytes = Frame(kind: bytes[5], body: Array(bytes[16...])).encoded()
    }

    static func flipped(_ bytes: [UInt8], _ bit: Int) -> [UInt8] {
        var bytes = bytes
        bytes[bit / 8] ^= 1 << UInt8(bit % 8)
        return bytes
    }

    static func refusedField<T>(_ body: () throws -> T) -> String? {
        do {
            _ = try body()
            return nil
        } catch WireError.malformed(let field, _) {
            return field
        } catch {
            return "\(error)"
        }
    }
}

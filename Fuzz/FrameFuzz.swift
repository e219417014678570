/// Fuzz target `frame`: what either side reads from a socket.
///
/// An even first byte makes the rest a request's or reply's body, which gets a right header; an odd one takes the rest as a
/// frame, of which only the checksum is put right. What is read must be written and read again to the same message.

import Primitives
import Wire

extension FuzzTarget {
    static let frame = FuzzTarget(name: "frame", seeds: FrameFuzz.seeds, run: FrameFuzz.run)
}

private enum FrameFuzz {
    @Sendable static func seeds() -> [[UInt8]] {
        let digest = Digest(of: [1])
        let requests: [Request] = [
            .inquire(Inquire(softwareVersion: "1")),
            .hello(
                Hello(
                    softwareVersion: "1", name: "a", secret: [UInt8](repeating: 7, count: 32), baseDigest: digest,
                    tokenizerDigest: digest, maximumRank: 4, exampleCount: 5, hasEvaluationData: true,
                    hasUnquantizedModel: true, sessionNonce: 1, kernelPath: "scalar")),
            .reportEvaluation(
                ReportEvaluation(
                    session: 1, round: 1, lossSum: 1.5, targetTokens: 3, examples: 3, exactMatches: nil,
                    labelTallies: [
                        LabelTally(correct: 1, predicted: 2, actual: 1), LabelTally(correct: 1, predicted: 1, actual: 2),
                    ])),
            .poll(Poll(session: 1, lastContribution: ContributionKey(round: 1, digest: digest))),
            .uploadChunk(
                UploadChunk(
                    session: 1, kind: .update, round: 1, digest: digest, index: 0, count: 1, totalBytes: 3, bytes: [1, 2, 3])),
            .commit(
                Commit(
                    session: 1, kind: .update, round: 1, attempt: 1, digest: digest, totalBytes: 3, exampleCount: 5,
                    training: TrainingReport(trainLoss: 1, targetTokens: 2, trainSeconds: 3))),
            .heartbeat(Heartbeat(session: 1, round: 1, step: 1, totalSteps: 2)),
        ]
        let blob = BlobReference(digest: digest, byteCount: 9, kind: .state, rank: 2)
        let replies: [Reply] = [
            .announcement(Announcement(softwareVersion: "1", runID: "run", plan: Array("{}".utf8))),
            .task(
                TaskReply(
                    lastContribution: .counted,
                    task: .train(
                        TrainTask(
                            round: 1, attempt: 1, deadlineMilliseconds: 5, blobs: [blob], derivedDigest: digest,
                            delta: StateDelta(from: digest, digest: digest, byteCount: 4))))),
            .chunk(Chunk(digest: digest, index: 0, count: 1, bytes: [1])),
            .committed(Committed(status: .pending, missing: [1, 2])),
            .refused(Refusal(code: .busy, message: "later", retryAfterMilliseconds: 5)),
        ]
        let frames = requests.map { $0.encoded() } + replies.map { $0.encoded() }
        return frames.flatMap { frame in
            [[0, frame[5]] + frame.dropFirst(WireLimits.headerBytes), [1] + frame]
        }
    }

    /// The frame with the checksum that belongs to it.
    private static func sealed(_ frame: [UInt8]) -> [UInt8] {
        guard frame.count >= WireLimits.headerBytes else { return frame }
        let checksum = CRC32C.checksum(
            Array(frame[WireLimits.headerBytes...]), continuing: CRC32C.checksum(Array(frame[..<12])))
        var writer = ByteWriter()
        writer.write(checksum)
        return frame[..<12] + writer.bytes + frame[WireLimits.headerBytes...]
    }

    @Sendable static func run(_ input: [UInt8]) -> String? {
        guard input.count >= 2 else { return "the input is too short" }
        let bytes =
            input[0] % 2 == 0
            ? Frame(kind: input[1], body: Array(input.dropFirst(2))).encoded() : sealed(Array(input.dropFirst()))
        let request = try? Request(decoding: bytes)
        let reply = try? Reply(decoding: bytes)
        if let request {
            precondition((try? Request(decoding: request.encoded())) == request, "a request changes when it is written again")
        }
        if let reply {
            precondition((try? Reply(decoding: reply.encoded())) == reply, "a reply changes when it is written again")
        }
        return request == nil && reply == nil ? "neither a request nor a reply" : nil
    }
}

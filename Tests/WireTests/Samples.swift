/// Messages of every kind and variant, small enough to damage in every possible way.

import Primitives
import Wire

enum Samples {
    static let session: UInt64 = 0x0102_0304_0506_0708
    static func digest(_ byte: UInt8) -> Digest { Digest(bytes: [UInt8](repeating: byte, count: 32))! }

    static let hello = Hello(
        softwareVersion: "0.1.0", name: "client-000", secret: (0..<32).map { UInt8($0) }, baseDigest: digest(0xB0),
        tokenizerDigest: digest(0x70), maximumRank: 8, exampleCount: 123, hasEvaluationData: true, sessionNonce: 99,
        kernelPath: "avx512")
    static let upload = UploadChunk(
        session: session, kind: .update, round: 3, digest: digest(0xC0), index: 0, count: 1, totalBytes: 5,
        bytes: [1, 2, 3, 4, 5])
    static let train = TrainTask(
        round: 4, attempt: 1, deadlineMilliseconds: 60_000,
        blobs: [
            BlobReference(digest: digest(0xA1), byteCount: 1000, kind: .state, rank: 16),
            BlobReference(digest: digest(0xA2), byteCount: 2000, kind: .segment, rank: 8),
        ], derivedDigest: digest(0xFA), delta: StateDelta(from: digest(0xA0), digest: digest(0xA3), byteCount: 300))

    /// By the names of the golden frames.
    static let requests: [(name: String, message: Request)] = [
        ("hello", .hello(hello)),
        ("poll", .poll(Poll(session: session, lastContribution: ContributionKey(round: 3, digest: digest(0xC0))))),
        ("fetchChunk", .fetchChunk(FetchChunk(session: session, digest: digest(0xD0), index: 7))),
        ("uploadChunk", .uploadChunk(upload)),
        (
            "commit",
            .commit(
                Commit(
                    session: session, kind: .update, round: 3, attempt: 1, digest: digest(0xC0), totalBytes: 5,
                    exampleCount: 123, training: TrainingReport(trainLoss: 2.5, targetTokens: 4567, trainSeconds: 12.25)))
        ),
        (
            "reportEvaluation",
            .reportEvaluation(
                ReportEvaluation(
                    session: session, round: 3, lossSum: 1234.5, targetTokens: 678, examples: 90, exactMatches: 12))
        ),
        ("heartbeat", .heartbeat(Heartbeat(session: session, round: 3, step: 4, totalSteps: 10))),
        ("leave", .leave(Leave(session: session, reason: "interrupted"))),
        ("inquire", .inquire(Inquire(softwareVersion: "0.1.0"))),
    ]

    static let replies: [(name: String, message: Reply)] = [
        (
            "welcome",
            .welcome(
                Welcome(
                    softwareVersion: "0.1.0", runID: "run-1", session: session, rank: 16, heartbeatSeconds: 10))
        ),
        ("task", .task(TaskReply(lastContribution: .counted, task: .train(train)))),
        ("chunk", .chunk(Chunk(digest: digest(0xD0), index: 0, count: 1, bytes: [7, 8, 9]))),
        ("chunkReceived", .chunkReceived(ChunkReceived(digest: digest(0xC0), index: 4))),
        ("committed", .committed(Committed(status: .pending, missing: [1, 3]))),
        ("acknowledged", .acknowledged),
        ("heartbeatReply", .heartbeatReply(HeartbeatReply(keepGoing: false, reason: "the round is over"))),
        (
            "announcement",
            .announcement(Announcement(softwareVersion: "0.1.0", runID: "run-1", plan: Array("{}".utf8)))
        ),
        ("refused", .refused(Refusal(code: .busy, message: "ask again", retryAfterMilliseconds: 1500))),
    ]

    static var moreRequests: [Request] {
        var bare = hello
        bare.maximumRank = nil
        bare.hasEvaluationData = false
        bare.hasUnquantizedModel = true
        bare.exampleCount = nil
        let size = WireLimits.chunkBytes
        let full = [UInt8](repeating: 0xEE, count: size)
        return [
            .hello(bare),
            .poll(Poll(session: 0, lastContribution: nil)),
            .reportEvaluation(
                ReportEvaluation(session: .max, round: .max, lossSum: 0, targetTokens: 0, examples: 0, exactMatches: nil)),
            .uploadChunk(
                UploadChunk(
                    session: 1, kind: .start, round: 0, digest: digest(1), index: 1, count: 3, totalBytes: UInt64(2 * size + 1),
                    bytes: full)),
            .uploadChunk(
                UploadChunk(
                    session: 1, kind: .start, round: 0, digest: digest(1), index: 2, count: 3, totalBytes: UInt64(2 * size + 1),
                    bytes: [1])),
            .uploadChunk(
                UploadChunk(session: 1, kind: .start, round: 0, digest: digest(1), index: 0, count: 1, totalBytes: 0, bytes: [])),
        ]
    }

    static var moreReplies: [Reply] {
        let tasks: [Task] = [
            .wait(milliseconds: 250, reason: "waiting for 2 more clients"),
            .start(StartTask(rank: 4)),
            .train(TrainTask(round: 1, attempt: 0, deadlineMilliseconds: .max, blobs: [], derivedDigest: nil)),
            .evaluate(EvaluateTask(round: 2, blobs: train.blobs, derivedDigest: nil)),
            .evaluate(EvaluateTask(round: 2, blobs: [], derivedDigest: digest(3))),
            .finished(reason: "the run is complete: größer, 大"),
        ]
        return tasks.map { .task(TaskReply(lastContribution: .none, task: $0)) } + [
            .chunk(Chunk(digest: digest(1), index: 0, count: 2, bytes: [UInt8](repeating: 5, count: WireLimits.chunkBytes))),
            .chunk(Chunk(digest: digest(1), index: 0, count: 1, bytes: [])),
            .committed(Committed(status: .counted)),
            .refused(Refusal(code: .wrongBase, message: "another base")),
        ]
    }
}

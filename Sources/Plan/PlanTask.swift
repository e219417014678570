/// The plan's task: whether it fits the model, and the head that follows from both.

import Checkpoints
import Primitives

extension FederationPlan {
    /// Labels of a run, and UTF-8 bytes of all of them together: the plan travels in one message.
    public static let largestLabelCount = 10_000
    public static let largestLabelBytes = 1 << 18
    /// Linear maps of a head, and their outputs and inputs: beyond those of every model, and such that their product is in range.
    static let largestHeadCount = 4
    static let largestHeadSide = 1 << 17

    /// Fills in the head that the model has for the plan's labels, once the labels are known.
    public mutating func settleTask(for configuration: ModelConfiguration) {
        head = task == .classify ? configuration.head(labelCount: labels.count) : []
    }

    /// - Throws: `Failure(.usage)` if the model is not for the task, or the head is another model's
    public func validateTask(for configuration: ModelConfiguration) throws(Failure) {
        let name = "a \(configuration.architecture.rawValue) model"
        switch task {
        case .causal:
            guard !configuration.isEncoder else {
                throw Failure(
                    .usage, "task is causal, but \(name) is an encoder, which classifies texts: use --task classify")
            }
        case .classify:
            guard configuration.isEncoder else {
                throw Failure(
                    .usage,
                    "task is classify, but \(name) predicts tokens: use a BERT or RoBERTa checkpoint, or leave --task out")
            }
        }
        guard head == (task == .classify ? configuration.head(labelCount: labels.count) : []) else {
            throw Failure(
                .usage, "the plan's head is not that of \(name) with \(labels.count) labels: use the same version on both sides")
        }
    }

    /// - Throws: `Failure(.usage)` if the labels cannot be those of the task
    public func validateLabels() throws(Failure) {
        func require(_ condition: Bool, _ message: @autoclosure () -> String) throws(Failure) {
            guard condition else { throw Failure(.usage, message()) }
        }
        guard task == .classify else {
            try require(labels.isEmpty && head.isEmpty, "labels mean nothing without --task classify: add it, or leave them out")
            return
        }
        try require(
            !labels.isEmpty,
            "labels are missing: name all of them with --labels, as a list or a file with one a line, in the order of the classifier's outputs"
        )
        try require(
            labels.count >= 2,
            "labels holds \(labels.count): classification needs at least 2; give a list, or a file with one a line")
        try require(
            labels.count <= Self.largestLabelCount, "labels holds \(labels.count): at most \(Self.largestLabelCount) are possible"
        )
        try require(
            labels.reduce(0) { $0 + $1.utf8.count } <= Self.largestLabelBytes,
            "labels holds more than \(Self.largestLabelBytes) bytes of text: use shorter ones")
        var seen: Set<[UInt8]> = []
        for (index, label) in labels.enumerated() {
            try require(!label.isEmpty, "labels: label \(index + 1) is empty")
            try require(
                !label.utf8.contains(0x0A) && !label.utf8.contains(0x0D),
                "labels: label \(index + 1) holds a line break: a file of labels has one a line")
            try require(
                !label.unicodeScalars.contains { $0.properties.generalCategory == .control },
                "labels: label \(index + 1) holds a control character: use plain text")
            try require(seen.insert(Array(label.utf8)).inserted, "labels holds \"\(label)\" twice: a label has one place")
        }
        try require(
            exactMatchTokens == 0 && exactMatchMarker.isEmpty,
            "exact-match is not possible with task classify, which writes nothing: leave it out; accuracy is always measured")
        // A plan may come over the wire: what no model has would trap, or allocate without limit, where layouts are made of it.
        try require(
            head.count <= Self.largestHeadCount && Set(head.map(\.name)).count == head.count
                && head.allSatisfy {
                    (1...Self.largestHeadSide).contains($0.outputs) && (1...Self.largestHeadSide).contains($0.inputs)
                }, "the plan's head is none that a model has: use the same version on both sides")
        try require(
            head.last?.outputs == labels.count,
            "the plan's head is not one of \(labels.count) labels: use the same version on both sides")
    }
}

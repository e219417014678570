/// The labels of the classifier that a checkpoint itself holds: what its outputs mean, and whether those of a task are the same.

import Primitives

extension CheckpointFolder {
    /// What the outputs of its own classifier mean, in their order, as `id2label` names them.
    ///
    /// - Throws: `Failure` if it has no classifier, or if a label is missing or repeated
    public func ownLabels() throws(Failure) -> [String] {
        let count = try ownLabelCount()
        guard let labels = try namedLabels(count) else {
            throw Failure(
                .usage, "the head's \(count) labels are not known: name them with --labels, in the order of its outputs")
        }
        return labels
    }

    /// Compares the labels of a task, byte by byte, with those of its own classifier, which is to tell them.
    ///
    /// Where `id2label` is left out, incomplete or only LABEL_0, LABEL_1, ..., nobody knows what the outputs mean but whoever
    /// names the labels.
    /// - Parameter labels: in the order of the outputs
    /// - Throws: `Failure` if there is no classifier, or one of other labels, or in another order
    public func checkOwnLabels(_ labels: [String]) throws(Failure) {
        let count = try ownLabelCount()
        let own = try namedLabels(count)
        let advice = own == nil ? "name them with --labels, in the order of its outputs" : "leave --labels out"
        guard labels.count == count else {
            throw Failure(
                .usage, "the classifier of \(path) tells \(count) labels apart, not the \(labels.count) of --labels: \(advice)")
        }
        guard let own, let place = labels.indices.first(where: { !labels[$0].utf8.elementsEqual(own[$0].utf8) }) else { return }
        let known = Set(own.map { Array($0.utf8) })
        let isNamed = own.indices.contains { !own[$0].utf8.elementsEqual("LABEL_\($0)".utf8) }
        guard isNamed || labels.contains(where: { known.contains(Array($0.utf8)) }) else { return }
        throw Failure(
            .usage,
            "--labels has other labels, or another order, than the classifier of \(path), whose output \(place) is \"\(own[place])\", not \"\(labels[place])\": leave --labels out"
        )
    }

    private func ownLabelCount() throws(Failure) -> Int {
        guard let headLabelCount else {
            throw Failure(.usage, "\(path) has no classifier of its own: name an adapter with a head with --adapter")
        }
        return headLabelCount
    }

    /// Nil where `id2label` does not name as many.
    ///
    /// - Throws: `Failure` if it names one twice, so that a base whose labels nobody uses may have it
    private func namedLabels(_ count: Int) throws(Failure) -> [String]? {
        guard let labels = configuration.encoder?.labels, labels.count == count else { return nil }
        if let repeated = firstRepeated(labels) {
            throw Failure(
                .badData,
                "\(companionPath("config.json")): id2label names \"\(repeated)\" twice: give every output of the classifier a label of its own"
            )
        }
        return labels
    }
}

/// The first text that stands in a list for the second time, compared by bytes; nil if each stands there once.
public func firstRepeated(_ texts: [String]) -> String? {
    var seen: Set<[UInt8]> = []
    return texts.first { !seen.insert(Array($0.utf8)).inserted }
}

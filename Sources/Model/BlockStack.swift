/// What `AdaptedModel` asks of a model's blocks, whichever kind they are: `CausalStack` and `EncoderStack` answer.

import LinearAlgebra
import Primitives

/// The places of a batch whose losses count: tokens that predict the next one, or sequences that have a label.
struct LossTargets {
    /// Rows of the last block's output, rising: the predicting tokens, or each sequence's first.
    var rows: [Int] = []
    /// The right token or label of each.
    var classes: [Int32] = []
    /// The sequence that each belongs to.
    var sequences: [Int] = []

    var count: Int { rows.count }
}

/// The place of the map behind attention among a block's maps, of either kind: after query, key and value.
let attentionOutputPlace = 3

/// What a backward pass will form, and so what its forward pass has to leave behind.
struct BackwardPass {
    /// Whether gradients of the adapter's trained tensors are formed.
    var formsGradient: Bool
    /// Places in a block of the maps whose dW is formed.
    var densePlaces: Set<Int> = []
}

/// Floats of a block's record: what stays exact where records are saved rounded, what is rounded, and what is not saved.
typealias RecordSizes = (exact: Int, rounded: Int, passing: Int)

/// Floats a token of the parts of a record, in the order of `RecordSizes`.
struct RecordWidths {
    var exact: [Int]
    var rounded: [Int]
    var passing: [Int] = []

    /// Each part begins on a boundary of 64 bytes.
    fileprivate static func size(_ width: Int, _ tokens: Int) -> Int { (width * tokens + 15) / 16 * 16 }

    func sizes(tokens: Int) -> RecordSizes {
        func sum(_ widths: [Int]) -> Int { widths.reduce(0) { $0 + Self.size($1, tokens) } }
        return (sum(exact), sum(rounded), sum(passing))
    }
}

/// What a block's forward keeps for its backward; one block of memory, its parts one after another.
class ActivationRecord {
    private let memory = FloatBuffer()
    private var sizes: RecordSizes = (0, 0, 0)
    private var starts: [Int] = []

    var pointer: UnsafeMutablePointer<Float> { memory.pointer }
    var exactCount: Int { sizes.exact }
    var roundedCount: Int { sizes.rounded }

    /// A part, `[tokens, width]`.
    func part(_ index: Int) -> UnsafeMutablePointer<Float> { memory.pointer + starts[index] }

    /// Makes room; growing loses the content.
    func reserve(_ widths: RecordWidths, tokens: Int) {
        sizes = widths.sizes(tokens: tokens)
        memory.reserve(sizes.exact + sizes.rounded + sizes.passing)
        var next = 0
        starts.removeAll(keepingCapacity: true)
        for width in widths.exact + widths.rounded + widths.passing {
            starts.append(next)
            next += RecordWidths.size(width, tokens)
        }
    }
}

/// The blocks of a model, what they read and what stands behind them, with the memory that running them takes.
///
/// `AdaptedModel` decides which blocks' records are kept, and runs the blocks from first to last and back.
protocol BlockStack: AnyObject {
    /// What the record of one block takes for so many tokens.
    func recordSizes(_ binding: AdapterBinding, tokens: Int, _ pass: BackwardPass) -> RecordSizes

    /// A record that `prepare` made room for.
    func record(_ index: Int) -> ActivationRecord

    /// Takes a batch, and makes room for running it.
    ///
    /// - Parameters:
    ///   - records: those that will be used
    ///   - backward: the backward pass that follows; nil for none
    func prepare(_ batch: TokenBatch, _ binding: AdapterBinding, records: Range<Int>, backward: BackwardPass?)

    /// What the first block reads, `[tokens, hidden]`.
    func embed(into target: UnsafeMutablePointer<Float>)

    /// y of a block from x, both `[tokens, hidden]`; what its backward pass needs is left in a record.
    func forward(_ layer: Int, _ x: UnsafePointer<Float>, record: Int, into y: UnsafeMutablePointer<Float>)

    /// Turns dy in `residualGradient` into dx, and adds to the gradients of trained tensors.
    ///
    /// - Parameters:
    ///   - x: the block's input, as in forward
    ///   - needsInput: whether anything below is trained; if not, dx is not computed
    ///   - dense: dW of some maps, by their place in the block
    func backward(
        _ layer: Int, _ x: UnsafePointer<Float>, record: Int, residualGradient: UnsafeMutablePointer<Float>, needsInput: Bool,
        gradient: GradientTarget?, dense: [Int: UnsafeMutablePointer<Float>])

    /// - Throws: `Failure` if the batch is not one for this model's task
    func targets(_ batch: TokenBatch) throws(Failure) -> LossTargets

    /// The loss of each target in nats, in the prepared batch.
    ///
    /// - Parameters:
    ///   - output: the last block's, `[tokens, hidden]`
    ///   - scales: factor of each loss in the gradients; none are computed where it is empty
    ///   - outputGradient: overwritten with the gradient of `output`; nil if no block needs it
    ///   - gradient: where gradients of the head's trained tensors go
    func losses(
        _ output: UnsafePointer<Float>, _ targets: LossTargets, scales: [Float], outputGradient: UnsafeMutablePointer<Float>?,
        gradient: GradientTarget?
    ) -> [Double]

    /// Logits of some rows, `[rows, vocabulary]`, or of every sequence, `[sequences, labels]`; the rows do not matter then.
    func logits(_ output: UnsafePointer<Float>, rows: [Int]) -> [Float]
}

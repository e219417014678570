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

/// The blocks of a model, what they read and what stands behind them, with the memory that running them takes.
///
/// `AdaptedModel` decides which blocks' records are kept, and runs the blocks from first to last and back.
protocol BlockStack: AnyObject {
    /// Bytes of a block's record, a token.
    func recordBytesPerToken(_ binding: AdapterBinding) -> Int

    /// Takes a batch, and makes room for running it.
    ///
    /// - Parameters:
    ///   - records: those that will be used
    ///   - backward: whether a backward pass follows
    func prepare(_ batch: TokenBatch, _ binding: AdapterBinding, records: Range<Int>, backward: Bool)

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

/// The trainer of this process.

import Checkpoints
import ClientCore
import ClientEngine
import Logging
import Primitives

struct Engine {
    let work: any LocalWork
    /// Of the arithmetic; results agree bit for bit within one.
    let kernelPath: String

    init(checkpoint: CheckpointFolder, data: String, evaluationData: String?, logger: Logger) throws(Failure) {
        throw Failure(.internalError, "this build has no training engine")
    }
}

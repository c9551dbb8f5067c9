namespace Mustafar;

/// <summary>What the work of a step of one token depends on, other than the content of device memory: two steps with the same layout do the
/// same work, which a graph can repeat.</summary>
/// <param name="Batch">Number of rows.</param>
/// <param name="MaxTokens">Bound of the lengths.</param>
/// <param name="IsPadded">Whether a row gets no token, if that changes the work.</param>
/// <param name="Tables">Addresses of what the host writes.</param>
/// <param name="Workspace">Address of the workspace.</param>
/// <param name="Storage">Address of what the first layer stores, of the first row in a dense cache; those of the other layers change with
/// it.</param>
/// <param name="Buffers">Version of the buffers that the layers share.</param>
internal readonly record struct StepLayout(
    int Batch, int MaxTokens, bool IsPadded, TableAddresses Tables, nint Workspace, nint Storage, int Buffers)
{
    /// <summary>What the layout of another step would be now: equal to it, unless something has moved since.</summary>
    internal StepLayout WithRowsOf(StepLayout other) =>
        this with { Batch = other.Batch, MaxTokens = other.MaxTokens, IsPadded = other.IsPadded, Storage = other.Storage };
}

/// <summary>Addresses of the tables that locate a cache's tokens.</summary>
/// <param name="Plan">The step's numbers.</param>
/// <param name="Pages">The page table.</param>
/// <param name="PageCapacity">Its number of entries per sequence.</param>
/// <param name="Slabs">The table of slabs.</param>
/// <param name="SlabCount">Their number.</param>
/// <param name="Moves">How often stored data has moved, after which an address may be reused for something else.</param>
internal readonly record struct TableAddresses(nint Plan, nint Pages, int PageCapacity, nint Slabs, int SlabCount, int Moves);

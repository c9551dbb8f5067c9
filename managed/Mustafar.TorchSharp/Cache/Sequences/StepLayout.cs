namespace Mustafar;

/// <summary>What the work of a step of one token depends on, apart from what device memory holds: two steps of one layout do the same
/// work, which a graph can repeat.</summary>
/// <param name="Batch">Rows.</param>
/// <param name="MaxTokens">Bound of the lengths.</param>
/// <param name="IsPadded">Whether a row gets no token, if that is different work.</param>
/// <param name="Tables">Where what the host writes is.</param>
/// <param name="Workspace">Address of the workspace.</param>
/// <param name="Storage">Address of what the first layer stores; those of the other layers change with it.</param>
/// <param name="Buffers">Which buffers the layers share.</param>
internal readonly record struct StepLayout(
    int Batch, int MaxTokens, bool IsPadded, TableAddresses Tables, nint Workspace, nint Storage, int Buffers);

/// <summary>Addresses of what says where a cache's tokens are.</summary>
/// <param name="Plan">The step's numbers.</param>
/// <param name="Pages">The page table.</param>
/// <param name="PageCapacity">Its entries for each sequence.</param>
/// <param name="Slabs">The table of slabs.</param>
/// <param name="SlabCount">How many there are.</param>
/// <param name="Moves">How often what is stored has moved, after which an address may come again that means another place.</param>
internal readonly record struct TableAddresses(nint Plan, nint Pages, int PageCapacity, nint Slabs, int SlabCount, int Moves);

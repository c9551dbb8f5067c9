namespace Mustafar.Tests.Cache.Model;

/// <summary>
/// An operation on one of the caches of a run. Its numbers mean something whatever the caches hold (shares are percent, indices are
/// taken modulo), so that it stays valid when operations before it are left out.
/// </summary>
internal abstract record CacheOperation(int Which)
{
    /// <summary>Performs the operation on a member of the run's caches, or adds and removes members.</summary>
    internal abstract void Run(List<CacheAndModel> caches);

    /// <summary>Simpler operations of the same kind.</summary>
    internal virtual IEnumerable<CacheOperation> Shrink() => [];

    protected CacheAndModel Of(List<CacheAndModel> caches) => caches[Which % caches.Count];

    protected static IEnumerable<int> Fewer(int tokens) => new[] { 1, tokens / 2, tokens - 1 }.Where(count => count > 0 && count < tokens).Distinct();

    internal sealed record Append(int Which, int Tokens, int[] Shares) : CacheOperation(Which)
    {
        internal override void Run(List<CacheAndModel> caches) => Of(caches).Append(Tokens, Shares);

        internal override IEnumerable<CacheOperation> Shrink() =>
            [.. Fewer(Tokens).Select(tokens => this with { Tokens = tokens }), .. Shares.Length > 0 ? [this with { Shares = [] }] : Array.Empty<Append>()];

        public override string ToString() => $"[{Which}] append {Tokens} ({string.Join(", ", Shares)} %)";
    }

    internal sealed record Forward(int Which, int Tokens, int[] Shares) : CacheOperation(Which)
    {
        internal override void Run(List<CacheAndModel> caches) => Of(caches).Forward(Tokens, Shares);

        internal override IEnumerable<CacheOperation> Shrink() =>
            [.. Fewer(Tokens).Select(tokens => this with { Tokens = tokens }), .. Shares.Length > 0 ? [this with { Shares = [] }] : Array.Empty<Forward>()];

        public override string ToString() => $"[{Which}] forward {Tokens} ({string.Join(", ", Shares)} %)";
    }

    internal sealed record Attend(int Which, int Queries) : CacheOperation(Which)
    {
        internal override void Run(List<CacheAndModel> caches) => Of(caches).Attend(Queries);

        internal override IEnumerable<CacheOperation> Shrink() => Fewer(Queries).Select(queries => this with { Queries = queries });

        public override string ToString() => $"[{Which}] attend {Queries}";
    }

    internal sealed record Truncate(int Which, int[] Shares) : CacheOperation(Which)
    {
        internal override void Run(List<CacheAndModel> caches) => Of(caches).Truncate(Shares);

        public override string ToString() => $"[{Which}] truncate to {string.Join(", ", Shares)} %";
    }

    internal sealed record TruncateAll(int Which, int Share) : CacheOperation(Which)
    {
        internal override void Run(List<CacheAndModel> caches) => Of(caches).TruncateAll(Share);

        public override string ToString() => $"[{Which}] truncate all to {Share} %";
    }

    internal sealed record Clear(int Which) : CacheOperation(Which)
    {
        internal override void Run(List<CacheAndModel> caches) => Of(caches).Clear();

        public override string ToString() => $"[{Which}] clear";
    }

    /// <summary>Both live on, until there are more caches than a run keeps.</summary>
    internal sealed record Fork(int Which, int[] Parents) : CacheOperation(Which)
    {
        private const int MostCaches = 3;

        internal override void Run(List<CacheAndModel> caches)
        {
            caches.Add(Of(caches).Fork(Parents));
            if (caches.Count > MostCaches)
            {
                new Dispose(Which).Run(caches);
            }
        }

        internal override IEnumerable<CacheOperation> Shrink() => Parents.Length > 1 ? [this with { Parents = Parents[..1] }] : [];

        public override string ToString() => $"[{Which}] fork {string.Join(", ", Parents)}";
    }

    /// <summary>What was restored takes the place of what was saved.</summary>
    internal sealed record SaveAndLoad(int Which) : CacheOperation(Which)
    {
        internal override void Run(List<CacheAndModel> caches)
        {
            CacheAndModel saved = Of(caches);
            caches[caches.IndexOf(saved)] = saved.SaveAndLoad();
            saved.Cache.Dispose();
        }

        public override string ToString() => $"[{Which}] save and load";
    }

    /// <summary>Parents as well as forks, but never the last.</summary>
    internal sealed record Dispose(int Which) : CacheOperation(Which)
    {
        internal override void Run(List<CacheAndModel> caches)
        {
            if (caches.Count > 1)
            {
                CacheAndModel gone = Of(caches);
                caches.Remove(gone);
                gone.Cache.Dispose();
            }
        }

        public override string ToString() => $"[{Which}] dispose";
    }
}

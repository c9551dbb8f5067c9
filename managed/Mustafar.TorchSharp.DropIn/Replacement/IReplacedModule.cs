namespace Mustafar.DropIn;

/// <summary>Implemented by every emitted subclass of a module's class.</summary>
internal interface IReplacedModule
{
    /// <summary>The target of its calls.</summary>
    ModuleReplacement Replacement { get; set; }

    /// <summary>Runs the forward of the class that it derives from.</summary>
    object? CallOriginal(object?[] arguments);
}

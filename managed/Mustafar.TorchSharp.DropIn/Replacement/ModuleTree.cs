using System.Collections;
using System.Reflection;
using System.Runtime.CompilerServices;
using TorchSharp.Utils;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>Finds modules in a model, and replaces them wherever the model holds them.</summary>
internal static class ModuleTree
{
    /// <summary>The model and all registered modules below it, each once.</summary>
    internal static List<nn.Module> All(nn.Module root)
    {
        HashSet<nn.Module> seen = new(ReferenceEqualityComparer.Instance) { root };
        List<nn.Module> all = [root];
        for (int i = 0; i < all.Count; i++)
        {
            foreach ((_, nn.Module child) in all[i].named_children())
            {
                if (seen.Add(child))
                {
                    all.Add(child);
                }
            }
        }

        return all;
    }

    /// <summary>
    /// Puts <c>exchange[m]</c> in the place of every module m: among registered children (keeping names and order), in fields of any
    /// visibility, and in the lists, arrays and dictionaries in fields.
    /// </summary>
    internal static void Exchange(nn.Module root, IReadOnlyDictionary<nn.Module, nn.Module> exchange)
    {
        // The tree is walked before it changes. A replaced module may hold others, in fields of the object that replaces it.
        foreach (nn.Module holder in All(root))
        {
            ExchangeIn(holder, exchange);
            if (exchange.TryGetValue(holder, out nn.Module? other))
            {
                ExchangeIn(other, exchange);
            }
        }
    }

    private static void ExchangeIn(nn.Module holder, IReadOnlyDictionary<nn.Module, nn.Module> exchange)
    {
        ExchangeChildren(holder, exchange);
        foreach (FieldInfo field in FieldCopy.FieldsOf(holder.GetType()))
        {
            if (field.FieldType.IsValueType || field.FieldType == typeof(string))
            {
                continue;
            }

            object? value = field.GetValue(holder);
            if (value is nn.Module module)
            {
                if (exchange.TryGetValue(module, out nn.Module? other))
                {
                    field.SetValue(holder, other);
                }
            }
            else if (value is IList list)
            {
                ExchangeElements(list, exchange);
            }
            else if (value is IDictionary dictionary)
            {
                ExchangeValues(dictionary, exchange);
            }
        }
    }

    // In place: removed and registered again, it would be missing for a moment for a thread that walks the children.
    private static void ExchangeChildren(nn.Module holder, IReadOnlyDictionary<nn.Module, nn.Module> exchange)
    {
        OrderedDict<string, nn.Module> children = Reflected.Get<OrderedDict<string, nn.Module>>(holder, "_internal_submodules");
        for (int i = 0; i < children.Count; i++)
        {
            (string name, nn.Module child) = children[i];
            if (exchange.TryGetValue(child, out nn.Module? other))
            {
                children[i] = (name, other);
            }
        }
    }

    private static void ExchangeElements(IList list, IReadOnlyDictionary<nn.Module, nn.Module> exchange)
    {
        if (list.IsReadOnly || list is Array { Rank: not 1 } || !MayHoldModules(list))
        {
            return;
        }

        for (int i = 0; i < list.Count; i++)
        {
            if (Exchanged(list[i], exchange) is object other)
            {
                list[i] = other;
            }
        }
    }

    private static void ExchangeValues(IDictionary dictionary, IReadOnlyDictionary<nn.Module, nn.Module> exchange)
    {
        if (dictionary.IsReadOnly || !MayHoldModules(dictionary))
        {
            return;
        }

        foreach (object key in dictionary.Keys.Cast<object>().ToArray())
        {
            if (Exchanged(dictionary[key], exchange) is object other)
            {
                dictionary[key] = other;
            }
        }
    }

    // Avoids boxing the elements of large arrays of numbers.
    private static bool MayHoldModules(object collection)
    {
        Type type = collection.GetType();
        Type? element = type.IsArray ? type.GetElementType() : type.GetGenericArguments().LastOrDefault();
        return element is null || !element.IsPrimitive;
    }

    // A module, or a tuple (name, module) as a dictionary of modules keeps them.
    private static object? Exchanged(object? element, IReadOnlyDictionary<nn.Module, nn.Module> exchange)
    {
        if (element is nn.Module module)
        {
            return exchange.TryGetValue(module, out nn.Module? other) ? other : null;
        }

        if (element is ITuple && element.GetType().IsValueType)
        {
            bool changed = false;
            foreach (FieldInfo field in element.GetType().GetFields(BindingFlags.Instance | BindingFlags.Public))
            {
                if (field.GetValue(element) is nn.Module held && exchange.TryGetValue(held, out nn.Module? other))
                {
                    field.SetValue(element, other);
                    changed = true;
                }
            }

            return changed ? element : null;
        }

        return null;
    }
}
